"""A job file and overrides in, a `JobConfig` out, or every problem at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ttsvar_ray.config.calibrated import with_thresholds
from ttsvar_ray.config.explain import key_names, section_of, validated
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.yaml_file import read_job_file, read_yaml, yaml_place
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
        value = read_yaml(text)
    except yaml.YAMLError as error:
        quoted = f"if it is a text, quote it for YAML, too: --set '{name}=\"{text}\"'"
        problems.append(f"--set {override}: the value is not valid YAML{yaml_place(error)}; {quoted}")
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


def option_names() -> list[str]:
    """Return every setting under its dotted name, in order: the whole configuration surface."""
    return [
        f"{name}.{key}" if section is not None else name
        for name, field in JobConfig.model_fields.items()
        for section in [section_of(field.annotation)]
        for key in (key_names(section) if section is not None else [""])
    ]
