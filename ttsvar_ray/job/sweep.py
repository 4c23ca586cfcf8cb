"""A sweep file: several settings of one job over one prompt set, and what their images are judged by.

    name: what is asked
    base: {model: ..., prompts: ..., ...}          sections of a job, common to all
    variants: {raw: {strategy: {name: raw}}, ...}  sections laid over them, by name
    grid: {strategy.n: [1, 2], ...}                and, or, all combinations of some settings
    control: raw                                   whom differences are taken to
    evaluators: [shapes-checker, hps-v2.1=DIR]     the first is the one that counts
    repetitions: 2                                 seeds: the job's own, and those that follow it
    published: {raw: {shapes-checker: 0.7}}        numbers to stand beside

All variants have the same prompts and seeds, and random streams are named by prompt, scale and slot: two
variants draw the same first images, so that differences are paired.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ttsvar_ray.config.explain import validated
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.load import read_job_file, recorded_config
from ttsvar_ray.config.values import Count, Number, Section, Text
from ttsvar_ray.errors import ConfigurationError, nearest, noting


class Sweep(Section):
    """What a sweep file says; see the module docstring."""

    name: Text
    base: dict[str, Any] = Field(default={})
    variants: dict[Text, dict[str, Any]] = Field(default={})
    grid: dict[Text, Annotated[list[Any], Field(min_length=1)]] = Field(default={})
    control: Text
    evaluators: Annotated[list[Text], Field(min_length=1)]
    repetitions: Count = 1
    published: dict[Text, dict[Text, Number]] = Field(default={})
    notes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of the comparison.

    Attributes:
        name: as the table shows it.
    """

    name: str
    jobs: tuple[JobConfig, ...]

    @property
    def job(self) -> JobConfig:
        """The job of the first repetition."""
        return self.jobs[0]


def read_sweep(path: Path, folder: Path, overrides: Sequence[str] = ()) -> tuple[Sweep, tuple[Variant, ...]]:
    """Read a sweep file; return it with its variants.

    Args:
        folder: that the variants' own folders are below.
        overrides: `section.key=value`, over every variant.

    Raises:
        ConfigurationError: with every problem, of the file and of the jobs in it.
    """
    content = read_job_file(path, "sweep file")
    problems: list[str] = []
    sweep = validated(Sweep, content, problems)
    if sweep is None:
        # What can be read of the jobs is, so that all problems are told at once.
        readable = {"name": "-", "control": "-", "evaluators": ["-"]}
        for name in ("base", "variants", "grid"):
            if validated(Sweep, {**readable, name: content.get(name, {})}, []) is not None:
                readable[name] = content.get(name, {})
        _variants_of(Sweep.model_validate(readable), folder, overrides, problems)
        raise ConfigurationError([f"{path}: {problem}" for problem in problems])
    variants = _variants_of(sweep, folder, overrides, problems)
    problems = problems or _unfit(sweep, variants)
    if problems:
        raise ConfigurationError([f"{path}: {problem}" for problem in problems])
    return sweep, variants


def _variants_of(
    sweep: Sweep, folder: Path, overrides: Sequence[str], problems: list[str]
) -> tuple[Variant, ...]:
    """Return the jobs of a sweep, each with a folder of its own.

    Args:
        folder: that all of them are below.
        overrides: `section.key=value`, over every variant.
        problems: gets those of every variant that cannot be read, which is left out.
    """
    found: list[Variant] = []
    for name, settings in _named_settings(sweep, problems).items():
        own: list[str] = []
        with noting(own):
            config = recorded_config(settings, overrides)
            jobs = [_repeated(config, folder / _slug(name), number) for number in range(sweep.repetitions)]
            found.append(Variant(name=name, jobs=tuple(jobs)))
        problems += [f"variant {name!r}: {problem}" for problem in own]
    return tuple(found)


def _repeated(config: JobConfig, folder: Path, repetition: int) -> JobConfig:
    output = config.output.model_copy(update={"path": str(folder / f"repetition-{repetition}")})
    return config.model_copy(update={"seed": config.seed + repetition, "output": output})


def _unfit(sweep: Sweep, variants: Sequence[Variant]) -> list[str]:
    """Return what keeps readable variants from being compared."""
    if not variants:
        return ["expected variants, a grid, or both, found neither"]
    names = [variant.name for variant in variants]
    slugs = [_slug(name) for name in names]
    problems = [
        f"variants: {name!r} needs a name that differs in more than its signs"
        for name, slug in zip(names, slugs, strict=True)
        if slugs.count(slug) > 1
    ]
    if sweep.control not in names:
        problems.append(
            f"control: expected one of the variants {', '.join(names)}, got {sweep.control!r}"
            f"{nearest(sweep.control, names)}"
        )
    problems += [
        f"published: expected variants, got {name!r}{nearest(name, names)}"
        for name in sweep.published
        if name not in names
    ]
    return problems + _unpaired(variants)


def _named_settings(sweep: Sweep, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Return the settings of each variant by its name: those that are named, then those of the grid."""
    named = {name: _laid_over(sweep.base, sections) for name, sections in sweep.variants.items()}
    if sweep.grid:
        for values in itertools.product(*sweep.grid.values()):
            chosen = dict(zip(sweep.grid, values, strict=True))
            settings = copy.deepcopy(sweep.base)
            for key, value in chosen.items():
                _set(settings, key, value)
            name = ", ".join(f"{key.removeprefix('strategy.')}={value}" for key, value in chosen.items())
            if name in named:
                problems.append(f"grid: variant {name!r} is there twice; remove one")
            named[name] = settings
    return named


def _laid_over(base: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with others over them; a section `strategy` takes the place of the base's."""
    merged = copy.deepcopy(dict(base))
    for name, section in sections.items():
        if name != "strategy" and isinstance(section, Mapping) and isinstance(merged.get(name), dict):
            merged[name] = {**merged[name], **section}
        else:
            merged[name] = copy.deepcopy(section)
    return merged


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):  # `strategy: raw`, which is refused with the job
            return
    settings[last] = value


def _unpaired(variants: Sequence[Variant]) -> list[str]:
    """Return what keeps variants from being compared prompt by prompt."""
    first = variants[0].job
    return [
        f"variant {variant.name!r}: {what}: expected the same for all variants, whose prompts are compared "
        "one by one; put it into base"
        for variant in variants[1:]
        for what, mine, its in (
            ("prompts", first.prompts, variant.job.prompts),
            ("seed", first.seed, variant.job.seed),
        )
        if mine != its
    ]


def _slug(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in name).strip("-.")
