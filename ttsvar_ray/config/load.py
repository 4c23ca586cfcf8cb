"""A job file and overrides in, a `JobConfig` out, or every problem at once."""

from __future__ import annotations

import copy
import difflib
import enum
import itertools
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ttsvar_ray.config.calibrated import with_thresholds
from ttsvar_ray.config.sections import JobConfig, SelectionConfig
from ttsvar_ray.errors import ConfigurationError


def load_config(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    needs_files: bool = True,
    plan: str | Path | None = None,
) -> JobConfig:
    """Read a job file, apply overrides in order, validate.

    Args:
        path: YAML job file, or None for the defaults.
        overrides: `section.key=value`; the value is read as YAML (`strategy.n=2`,
            `strategy.cluster_scales=[2, 5]`, `strategy.potential=null`).
        plan: YAML file of a section `strategy`, which takes the place of the job's.
        needs_files: whether `prompts.path` and `output.path` must be given (not for looking at plans).

    Raises:
        ConfigurationError: with all problems, each as `field: expected ..., got ...; what to do`.
    """
    problems: list[str] = []
    settings = read_job_file(Path(path)) if path is not None else {}
    if plan is not None:
        chosen = read_job_file(Path(plan))
        if set(chosen) != {"strategy"}:
            found = ", ".join(map(str, chosen)) or "none"
            problems.append(f"{plan}: expected one section, strategy, in a plan file, got {found}")
        settings["strategy"] = chosen.get("strategy")
    for override in overrides:
        _apply_override(settings, override, problems)
    with_thresholds(settings, problems)
    config = _validate(settings, problems)
    if needs_files:
        if _is_not_given(settings, "prompts"):
            problems.append("prompts.path: not given; add --prompts FILE, or prompts.path in the job file")
        if _is_not_given(settings, "output"):
            problems.append("output.path: not given; add --output DIR, or output.path in the job file")
    if problems or config is None:
        raise ConfigurationError(problems)
    return config


_MOST_VALUES = 10_000
"""A job file has a hundred."""

_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is written twice, where YAML would keep the last one silently.

    Numbers are those of YAML 1.2: `16:9` is text, where YAML 1.1 reads it in base 60.
    """


_UniqueKeyLoader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(rf"(?!.*:){pattern.pattern}", pattern.flags) if tag in _NUMBER_TAGS else pattern)
        for tag, pattern in resolvers
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _construct_unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.MarkedYAMLError(
                problem=f"expected a name before the colon, got a {type(key).__name__}",
                problem_mark=key_node.start_mark,
            )
        if key in seen:
            raise yaml.MarkedYAMLError(
                problem=f"key {key!r} is written twice",
                problem_mark=key_node.start_mark,
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_unique_mapping)


def recorded_config(recorded: Mapping[str, Any], overrides: Sequence[str] = ()) -> JobConfig:
    """Return the settings that a run has recorded, with overrides.

    Raises:
        ConfigurationError: overrides that are wrong, or settings that this version no longer has.
    """
    problems: list[str] = []
    settings = copy.deepcopy(dict(recorded))
    for override in overrides:
        _apply_override(settings, override, problems)
    config = _validate(settings, problems)
    if config is None or problems:
        raise ConfigurationError(problems)
    return config


def _read_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: it is none; also where it is too large, or holds a number or date that cannot be.
    """
    loader = _UniqueKeyLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values_in(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"expected at most {_MOST_VALUES} values, got more (anchors repeat others)")
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("expected sections and lists of moderate depth, got deeper ones") from None
    except ValueError as error:
        raise yaml.YAMLError(f"a number or a date cannot be read ({error})") from None
    finally:
        loader.dispose()


def _values_in(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Return how many values a node holds, those that aliases repeat as often as they do."""
    if node not in known:
        known[node] = _MOST_VALUES + 1  # A node that holds itself never ends.
        inner: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = itertools.chain.from_iterable(node.value)
        known[node] = 1 + sum(_values_in(each, known) for each in inner)
    return known[node]


def read_job_file(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file of sections.

    Raises:
        ConfigurationError: no such file, or not such a content.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such job file") from None
    except IsADirectoryError:
        raise ConfigurationError(f"{path}: expected a YAML job file, got a folder") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: expected a YAML job file in UTF-8, got other bytes") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        settings = _read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not valid YAML{_yaml_place(error)}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        found = type(settings).__name__
        raise ConfigurationError(
            f"{path}: expected sections such as 'model:' and 'prompts:', got one {found}"
        )
    return settings


def _yaml_place(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f" at line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return f": {error}"


def _apply_override(settings: dict[str, Any], override: str, problems: list[str]) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        problems.append(f"--set {override}: expected section.key=value, for example strategy.n=2")
        return
    try:
        value = _read_yaml(text)
    except yaml.YAMLError as error:
        problems.append(f"--set {override}: the value is not valid YAML{_yaml_place(error)}")
        return
    section = settings
    for key in keys[:-1]:
        inner = section.get(key)
        if inner is None:
            inner = section[key] = {}
        if not isinstance(inner, dict):
            problems.append(f"--set {override}: '{key}' is a value, not a section")
            return
        section = inner
    section[keys[-1]] = value


def _is_not_given(settings: Mapping[Any, Any], name: str) -> bool:
    """Whether a section says no path; a section of a wrong kind is reported elsewhere."""
    section = settings.get(name)
    return section is None or (isinstance(section, dict) and section.get("path") in (None, "", []))


def _validate(settings: Mapping[Any, Any], problems: list[str]) -> JobConfig | None:
    # An empty section ("strategy:" with nothing below) is None in YAML; it means its defaults.
    sections = {
        str(name): {} if value is None and _section_model(str(name)) is not None else value
        for name, value in settings.items()
    }
    try:
        return JobConfig.model_validate(sections)
    except ValidationError as error:
        # A union reports once per member; one line per field is what a person can read.
        by_field: dict[str, list[ErrorDetails]] = {}
        for details in error.errors(include_url=False):
            by_field.setdefault(_field_path(details["loc"]), []).append(details)
        # Of a number-or-list, a wrong entry says more than "not a number" about the whole.
        inner = {field.partition("[")[0] for field in by_field if "[" in field}
        problems.extend(_explain(field, by_field[field]) for field in by_field if field not in inner)
        return None


def _section_model(name: str) -> type[BaseModel] | None:
    field = JobConfig.model_fields.get(name)
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _field_path(location: tuple[int | str, ...]) -> str:
    """Return `section.key`, `section.key[i]` or `section.key[i].key`, without the names of union members."""
    names = [part for part in location[:2] if isinstance(part, str)]
    path, within = ".".join(names), False
    for part in location[2:]:
        if isinstance(part, int):
            path, within = f"{path}[{part}]", True
        elif within:
            path += f".{part}"
    return path


def _explain(field: str, details: list[ErrorDetails]) -> str:
    first = details[0]
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key{_known_keys(first['loc'])}"
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
        line += _suggestion(first["input"], choices)
    return line


def _expectation(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    match details["type"]:
        case "literal_error" | "enum":
            return str(context["expected"])
        case "int_type" | "int_parsing" | "int_from_float":
            return "a whole number"
        case "float_type" | "float_parsing":
            return "a number"
        case "finite_number":
            return "a finite number"
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "string_type":
            return "text"
        case "string_too_short":
            return "text that is not empty"
        case "tuple_type" | "list_type":
            return "a list"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "a section with keys of its own"
        case "greater_than_equal":
            return f"at least {context['ge']}"
        case "greater_than":
            return f"more than {context['gt']}"
        case "less_than_equal":
            return f"at most {context['le']}"
        case _:
            return details["msg"]


def _choices(details: Iterable[ErrorDetails]) -> list[str]:
    return [
        choice.strip().strip("'")
        for item in details
        if item["type"] in ("literal_error", "enum")
        for choice in str(item["ctx"]["expected"]).replace(" or ", ", ").split(", ")
    ]


def _known_keys(location: tuple[int | str, ...]) -> str:
    section: type[BaseModel] | None = JobConfig
    for part in location[:-1]:
        if not isinstance(part, int):
            section = SelectionConfig if part == "selections" else _section_model(part)
    if section is None:
        return ""
    known = _names(section)
    unknown = str(location[-1])
    elsewhere = [
        f"{name}.{unknown}"
        for name in JobConfig.model_fields
        if (inner := _section_model(name)) is not None and unknown in _names(inner)
    ]
    hint = _suggestion(unknown, known)
    if not hint and elsewhere:
        hint = f"; did you mean {' or '.join(elsewhere)}?"
    return f"{hint or ';'} known keys: {', '.join(known)}"


def _names(section: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in section.model_fields.items()]


def _suggestion(found: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(found.lower(), choices, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _show(value: Any) -> str:
    if isinstance(value, enum.Enum):
        value = value.value
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def option_names() -> list[str]:
    """Return every setting under its dotted name, in order: the whole configuration surface."""
    return [
        f"{name}.{key}" if section is not None else name
        for name in JobConfig.model_fields
        for section in [_section_model(name)]
        for key in (_names(section) if section is not None else [""])
    ]
