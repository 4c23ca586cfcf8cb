"""A job file and overrides in, a `JobConfig` out, or every problem at once.

YAML is read as people write it: numbers as they look, no key twice, and errors with their line.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ttsvar_ray.config.calibrated import with_thresholds
from ttsvar_ray.config.explain import validated
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.errors import ConfigurationError

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


def _read_yaml(text: str) -> Any:
    """Return the value of a YAML text."""
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


def read_job_file(path: Path, kind: str = "job file") -> dict[str, Any]:
    """Return the content of a YAML file of sections.

    Args:
        kind: what it should be, for messages.

    Raises:
        ConfigurationError: no such file, or not such a content.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such {kind}") from None
    except IsADirectoryError:
        raise ConfigurationError(f"{path}: expected a YAML {kind}, got a folder") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: expected a YAML {kind} in UTF-8, got other bytes") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        settings = _read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not valid YAML{_yaml_place(error)}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        keys = {"plan file": "'strategy:'", "sweep file": "'base:' and 'variants:'"}
        names = keys.get(kind, "'model:' and 'prompts:'")
        found = "text" if isinstance(settings, str) else type(settings).__name__
        raise ConfigurationError(f"{path}: expected sections such as {names}, got one {found}")
    return settings


def _yaml_place(error: yaml.YAMLError) -> str:
    """Return where a text is no YAML, and why, to follow "not valid YAML"."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f" at line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return f": {error}"


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
        chosen = read_job_file(Path(plan), "plan file")
        if set(chosen) != {"strategy"}:
            found = ", ".join(map(str, chosen)) or "none"
            problems.append(f"{plan}: expected one section, strategy, in a plan file, got {found}")
        settings["strategy"] = chosen.get("strategy")
    for override in overrides:
        _apply_override(settings, override, problems)
    with_thresholds(settings, problems)
    config = validated(JobConfig, settings, problems)
    if needs_files:
        if _is_not_given(settings, "prompts"):
            problems.append("prompts.path: not given; add --prompts FILE, or prompts.path in the job file")
        if _is_not_given(settings, "output"):
            problems.append("output.path: not given; add --output DIR, or output.path in the job file")
    if problems or config is None:
        raise ConfigurationError(problems)
    return config


def recorded_config(recorded: Mapping[str, Any], overrides: Sequence[str] = ()) -> JobConfig:
    """Return the settings that a run has recorded, with overrides.

    Raises:
        ConfigurationError: overrides that are wrong, or settings that this version no longer has.
    """
    problems: list[str] = []
    settings = copy.deepcopy(dict(recorded))
    for override in overrides:
        _apply_override(settings, override, problems)
    config = validated(JobConfig, settings, problems)
    if config is None or problems:
        raise ConfigurationError(problems)
    return config


def _apply_override(settings: dict[str, Any], override: str, problems: list[str]) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        problems.append(f"--set {override}: expected section.key=value, for example strategy.n=2")
        return
    try:
        value = _read_yaml(text)
    except yaml.YAMLError as error:
        quoted = f"if it is a text, quote it for YAML, too: --set '{name}=\"{text}\"'"
        problems.append(f"--set {override}: the value is not valid YAML{_yaml_place(error)}; {quoted}")
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
