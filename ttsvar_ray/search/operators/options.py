"""An operator's options: the fields of its dataclass, read from settings with every problem named."""

from __future__ import annotations

import dataclasses
import enum
import math
import numbers
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ttsvar_ray.errors import ConfigurationError, brief, nearest
from ttsvar_ray.search.operators.protocol import Operator
from ttsvar_ray.search.validation import is_whole_number


def option(
    default: Any, *, least: float | None = None, most: float | None = None, advice: str = "correct it"
) -> Any:
    """Return the dataclass field of an option that has a range.

    Args:
        default: its value where settings say nothing.
        least, most: bounds, included; None: none.
        advice: what to do about a value outside, for messages.
    """
    return dataclasses.field(default=default, metadata={"least": least, "most": most, "advice": advice})


def option_problems(
    operator: type[Operator], given: Mapping[str, Any], *, named: Callable[[str], str]
) -> list[str]:
    """Return what is wrong with the options of an operator: names, kinds of value, ranges.

    Args:
        given: value of each option, as written in the settings.
        named: the setting of an option, for messages.
    """
    fields = _fields(operator)
    problems = []
    for name, value in given.items():
        if name not in fields:
            known = f"it has {', '.join(fields)}" if fields else "it has none"
            hint = nearest(name, [*fields]) or ";"
            problems.append(f"{named(name)}: operator {operator.name} has no such option{hint} {known}")
        elif (problem := _problem(*fields[name], value)) is not None:
            problems.append(f"{named(name)}: {problem}")
    return problems


def make_operator(operator: type[Operator], given: Mapping[str, Any], *, setting: str) -> Operator:
    """Return an operator with options that `option_problems` finds nothing wrong with.

    Args:
        setting: that names the operator, for messages.

    Raises:
        ConfigurationError: the class itself refuses them, or they cannot be compared and hashed.
    """
    fields = _fields(operator)
    values = {fields[name][0].name: _converted(fields[name][1], value) for name, value in given.items()}
    try:
        made = operator(**values)
        hash(made)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"{setting}: operator {operator.name} refuses its options ({brief(error)})"
        ) from error
    return made


def _fields(operator: type[Operator]) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Return field and type of each option, by its name in settings: an underscore at the end is Python's."""
    hints = typing.get_type_hints(operator)
    fields = dataclasses.fields(operator)  # type: ignore[arg-type]  # checked where the class was read
    return {field.name.removesuffix("_"): (field, hints[field.name]) for field in fields if field.init}


def _problem(field: dataclasses.Field[Any], kind: Any, value: Any) -> str | None:
    """Return what is wrong with one value, None where nothing is."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        values = [member.value for member in kind]
        if value in values or isinstance(value, kind):
            return None
        return f"expected one of {', '.join(map(str, values))}, got {value!r}; choose one of them."
    if kind in (bool, str):
        wanted = "true or false" if kind is bool else "text"
        return None if isinstance(value, kind) else f"expected {wanted}, got {value!r}; correct it."
    if kind not in (int, float):
        return None
    least, most = field.metadata.get("least"), field.metadata.get("most")
    is_number = is_whole_number(value) if kind is int else _is_finite(value)
    if is_number and (least is None or value >= least) and (most is None or value <= most):
        return None
    span = "" if least is None else f" of at least {least:g}"
    if most is not None:
        span = f" of at most {most:g}" if least is None else f" from {least:g} to {most:g}"
    noun = "a whole number" if kind is int else "a finite number"
    return f"expected {noun}{span}, got {value!r}; {field.metadata.get('advice', 'correct it')}."


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def _converted(kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if kind in (int, float):
        return kind(value)
    return tuple(value) if isinstance(value, list) else value
