"""What pydantic finds wrong, in our words: where, what was expected, what was found, the nearest names."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ttsvar_ray.errors import nearest

_Value = TypeVar("_Value")


def validated(kind: type[_Value], settings: Mapping[Any, Any], problems: list[str]) -> _Value | None:
    """Return settings as values of a kind, or None.

    Args:
        kind: a model, or a dataclass.
        settings: as a file has them.
        problems: gets a line for each field that is wrong: `field: expected ..., got ...; what to do`.
    """
    fields = kind.model_fields if issubclass(kind, BaseModel) else {}
    # An empty section ("strategy:" with nothing below) is None in YAML; it means its defaults.
    given = {
        str(name): {} if value is None and name in fields and section_of(fields[name].annotation) else value
        for name, value in settings.items()
    }
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        # A union reports once per member; one line per field is what a person can read.
        by_field: dict[str, list[ErrorDetails]] = {}
        for details in error.errors(include_url=False):
            by_field.setdefault(_field_path(details, given), []).append(details)
        # Of a number-or-list, a wrong entry says more than "not a number" about the whole.
        inner = {field.partition("[")[0] for field in by_field if "[" in field}
        problems.extend(_explain(kind, field, by_field[field]) for field in by_field if field not in inner)
        return None


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field holds, by itself or in a list; None: it holds something else."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_of, get_args(annotation))), None)


def key_names(section: type[BaseModel]) -> list[str]:
    """Return the names of a section's keys, as files have them."""
    return [info.alias or name for name, info in section.model_fields.items()]


def _field_path(details: ErrorDetails, settings: Any) -> str:
    """Return `section.key`, `section.key[i]` or `section.key[i].key`, without the names of union members."""
    path, value = "", settings
    for depth, part in enumerate(details["loc"]):
        if isinstance(part, int):
            path += f"[{part}]"
        elif depth < 2 or details["type"] in _KEY_ERRORS or (isinstance(value, Mapping) and part in value):
            path += f".{part}" if path else part
        else:
            continue
        try:
            value = value[part]
        except (LookupError, TypeError):
            value = None
    return path


_KEY_ERRORS = ("missing", "extra_forbidden")


def _explain(root: type[Any], field: str, details: list[ErrorDetails]) -> str:
    first = details[0]
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key{_known_keys(root, first['loc'])}"
    if first["type"] == "missing":
        return f"{field}: not given; add it"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
        return f"{field}.{message}" if ": " in message else f"{field}: {message}"
    expected = list(dict.fromkeys(_expectation(item) for item in details))
    line = f"{field}: expected {' or '.join(expected)}, got {_show(first['input'])}"
    # As typed: a list without brackets. Quoted, because zsh reads brackets itself.
    if "a list" in expected and isinstance(first["input"], (str, int)):
        entries = str(first["input"]).strip("[]")
        line += f"; write it as '{field}=[{entries}]', with the quotes"
    choices = _choices(details)
    if choices and isinstance(first["input"], str):
        line += nearest(first["input"], choices)
    return line


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "tuple_type": "a list",
    "list_type": "a list",
    "is_instance_of": "a list",
    "model_type": "a section with keys of its own",
    "model_attributes_type": "a section with keys of its own",
    "dataclass_type": "a section with keys of its own",
    "dict_type": "a section with keys of its own",
    "mapping_type": "a section with keys of its own",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length} of them",
}


def _expectation(details: ErrorDetails) -> str:
    known = _EXPECTED.get(details["type"])
    return details["msg"] if known is None else known.format(**details.get("ctx", {}))


def _choices(details: Iterable[ErrorDetails]) -> list[str]:
    return [
        choice.strip().strip("'")
        for item in details
        if item["type"] in ("literal_error", "enum")
        for choice in str(item["ctx"]["expected"]).replace(" or ", ", ").split(", ")
    ]


def _known_keys(root: type[Any], location: tuple[int | str, ...]) -> str:
    *sections, unknown = (str(part) for part in location if not isinstance(part, int))
    section = root if issubclass(root, BaseModel) else None
    for part in sections:
        field = None if section is None else section.model_fields.get(part)
        section = None if field is None else section_of(field.annotation)
    if section is None:
        return "; remove it"
    known = key_names(section)
    elsewhere = [
        f"{name}.{unknown}"
        for name, field in root.model_fields.items()
        if (inner := section_of(field.annotation)) is not None and unknown in key_names(inner)
    ]
    hint = nearest(unknown, known)
    if not hint and elsewhere:
        hint = f"; did you mean {' or '.join(elsewhere)}?"
    return f"{hint or ';'} known keys: {', '.join(known)}"


def _show(value: Any) -> str:
    if isinstance(value, enum.Enum):
        value = value.value
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
