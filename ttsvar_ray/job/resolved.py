"""A job, understood once: from settings to a plan and to everything else that they mean.

Comes in: a valid `JobConfig`. Goes out: a `ResolvedJob`, which is handed on to whatever runs, prints or
simulates the job. What a setting leaves open ("auto", None) is filled in here from the model's own
config.json, and nowhere else. No weights are read and no device is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.sections import FeaturesConfig
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.engine.encode import DEFAULT_PNG_LEVEL, DEFAULT_QUALITY
from ttsvar_ray.errors import ConfigurationError, noting
from ttsvar_ray.job.parts import (
    FETCH_WORDS,
    NamedPart,
    require_known_extractor,
    resolve_extractor,
    resolve_map_reward,
    resolve_rewards,
)
from ttsvar_ray.job.plan import build_plan, check_rows, rows_of
from ttsvar_ray.models.description import ModelChoice, ModelDescription
from ttsvar_ray.models.registry import (
    check_top_k,
    confidences,
    describe_model,
    published_names,
    resolve_device,
)
from ttsvar_ray.models.sampling import per_scale
from ttsvar_ray.own_code import VISION_LANGUAGE, is_own
from ttsvar_ray.prompts.rewrite import rewriter_of
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Plan, selection_words
from ttsvar_ray.search.strategy import SelectionSetting
from ttsvar_ray.types import PotentialKind


@dataclass(frozen=True, kw_only=True)
class ResolvedJob:
    """What a job's settings mean.

    Attributes:
        config: the settings, as they were given.
    """

    config: JobConfig
    description: ModelDescription
    plan: Plan

    @cached_property
    def rewards(self) -> tuple[NamedPart, ...]:
        """What scores the images: one reward, or the members of an ensemble.

        Raises:
            ConfigurationError: an unknown name, or a path where nothing is.
        """
        return resolve_rewards(self.config.reward, self.description)

    @cached_property
    def map_reward(self) -> NamedPart | None:
        """What reads rewards off feature maps; None where the plan has no such scales.

        Raises:
            ConfigurationError: no such class, or no file for it.
        """
        return resolve_map_reward(self.config.reward, self.rewards[0]) if self.plan.reads_maps else None

    @cached_property
    def extractor(self) -> NamedPart | None:
        """What makes features; None where nothing in the plan reads them.

        Raises:
            ConfigurationError: an unknown name, or a path where nothing is.
        """
        return (
            resolve_extractor(self.config.features, self.description)
            if Signal.FEATURES in self.plan.reads
            else None
        )

    @property
    def unpriced(self) -> str:
        """Which parts have code of the user's, whose cost nobody knows; or ""."""
        section = self.config.reward
        named = [*(section.members or [section.name])]
        if Signal.FEATURES in self.plan.reads:
            named.append(self.config.features.extractor)
        if self.plan.reads_maps:
            named.append(section.on_map)
        named += [str(entry.operator) for entry in self.config.strategy.selections or ()]
        return " and ".join(name for name in dict.fromkeys(named) if is_own(name) and name != VISION_LANGUAGE)

    @property
    def pass_rows(self) -> tuple[int, ...] | None:
        """Rows that every forward pass of a segment has; None where they are as many as come."""
        return rows_of(self.config, self.plan) if self.config.engine.deterministic else None


def resolve(
    config: JobConfig,
    *,
    needs_parts: bool = False,
    here: bool = False,
    selections: Sequence[SelectionSetting] | None = None,
) -> ResolvedJob:
    """Understand a job's settings.

    Args:
        needs_parts: also find what is wrong with the reward, the features and the sampling, and whether
            their files and the model's are there; not for looking at plans.
        here: with them, whether the job runs on this machine, so that it can be asked for a GPU.
        selections: of the plan, in place of `strategy.selections`: operators may be objects here.

    Raises:
        ConfigurationError: with every problem.
        CheckpointError: a model directory that cannot be read.
    """
    description = describe_model(model_choice(config))
    problems: list[str] = []
    plan: Plan | None = None
    with noting(problems):
        plan = build_plan(config, description, selections)
        check_rows(config, plan)
    with noting(problems):
        if config.prompts.rewrite is not None:
            rewriter_of(config.prompts.rewrite)
    if needs_parts:
        _check_parts(config, description, plan, problems)
        _check_device(config, problems, here=here)
    if problems or plan is None:
        raise ConfigurationError(problems)
    return ResolvedJob(config=config, description=description, plan=plan)


def plan_note(job: ResolvedJob) -> str:
    """Return what somebody who reads the settings may not expect of the plan; or ""."""
    own = job.unpriced
    priced = own and f"costs, memory and times are without {own}, which nobody knows"
    return "; ".join(note for note in (_left_plan_note(job), _unread_features_note(job), priced) if note)


def _left_plan_note(job: ResolvedJob) -> str:
    """Return what else changes where a job names selection scales and so leaves the model's own plan; or "".

    A model's schedule belongs to its own selections: naming some of them takes the published populations, and
    the published scales of the others. An ablation of one list should know that its budget is another.
    """
    strategy = job.config.strategy
    named = [kind for kind in ("cluster", "resample") if getattr(strategy, f"{kind}_scales") is not None]
    if strategy.plan != "model" or strategy.selections is not None or not named or not job.description.plan:
        return ""
    settings = [f"{kind}_scales" for kind in named]
    without = strategy.model_copy(update=dict.fromkeys((*settings, "batch_schedule")))
    own = resolve(job.config.model_copy(update={"strategy": without})).plan
    changes = []
    if strategy.batch_schedule is None and own.population_before != job.plan.population_before:
        before, now = ("-".join(map(str, plan.population_before)) for plan in (own, job.plan))
        changes.append(f"populations {before} are {now}")
    others = [
        [(one.scale_index, one.operator) for one in plan.selections if one.operator.name not in named]
        for plan in (own, job.plan)
    ]
    if len(named) == 1 and others[0] != others[1]:
        changes.append(f"selections ({selection_words(own)}) are ({selection_words(job.plan)})")
    if not changes:
        return ""
    return (
        f"naming strategy.{' and '.join(settings)} leaves the model's own plan: {', '.join(changes)}. To "
        "change one thing at a time name batch_schedule and all selections (strategy.selections)"
    )


def _unread_features_note(job: ResolvedJob) -> str:
    """Return which settings of `features` change nothing, because no selection of the plan reads any; or "".

    They are no error: variants of one job share the section, and some of them (raw, best-of-n) read none.
    """
    if Signal.FEATURES in job.plan.reads:
        return ""
    section, usual = job.config.features, FeaturesConfig()
    given = [
        f"features.{name}"
        for name in type(usual).model_fields
        if getattr(section, name) != getattr(usual, name)
    ]
    if not given:
        return ""
    return f"no selection of this plan reads features: {', '.join(given)} will not be read"


def model_choice(config: JobConfig) -> ModelChoice:
    """Return which model a job wants."""
    section = config.model
    return ModelChoice(
        name=section.name,
        path=section.path,
        text_encoder=section.text_encoder,
        resolution=section.resolution,
        aspect_ratio=section.aspect_ratio,
        positive_prompt=section.positive_prompt,
    )


def image_settings(config: JobConfig) -> tuple[str, int, int]:
    """Return the format, the quality and the PNG level that a job writes images in."""
    output = config.output
    quality = DEFAULT_QUALITY if output.quality is None else output.quality
    return output.image_format, quality, DEFAULT_PNG_LEVEL if output.png_level is None else output.png_level


def coordinator_settings(config: JobConfig) -> CoordinatorSettings:
    """Return the policies of a job's coordinators, also of one whose parts are not in the settings."""
    cluster = config.cluster
    floor = min(CoordinatorSettings().deadline_floor_seconds, cluster.segment_timeout_s)
    return CoordinatorSettings(
        spread=cluster.spread,
        max_attempts=cluster.max_attempts,
        keep=config.output.keep,
        trace_bits=config.output.trace == "bits",
        batch_tokens=cluster.batch_tokens,
        deadline_ceiling_seconds=cluster.segment_timeout_s,
        # A worker whose scores wait for a replica that is starting again is well.
        deadline_floor_seconds=cluster.segment_timeout_s if config.verifiers.replicas else floor,
    )


def _check_parts(
    config: JobConfig, description: ModelDescription, plan: Plan | None, problems: list[str]
) -> None:
    """Find what is wrong with a job's weights, reward, features and sampling without loading anything."""
    absent = [
        f"{part.replace('_', ' ')} at {source}"
        for part, source in description.weights.items()
        if isinstance(source.root, Path) and not (source.root / source.name).exists()
    ]
    if absent:
        words = f"; {FETCH_WORDS}" if config.model.name in published_names() else ""
        problems.append(f"model: expected its {' and its '.join(absent)}, found nothing there{words}")
    with noting(problems):
        rewards = resolve_rewards(config.reward, description)
        if plan is not None and plan.reads_maps:
            resolve_map_reward(config.reward, rewards[0])
            if config.verifiers.replicas and not is_own(config.reward.on_map):
                problems.append(
                    "verifiers.replicas: expected 0 with strategy.map_scales, whose rewards the reward's own "
                    f"network reads inside the workers, got {config.verifiers.replicas}; remove one"
                )
        elif config.reward.on_map != "auto":
            problems.append(
                "reward.on_map: this plan reads no rewards off feature maps, got "
                f"{config.reward.on_map!r}; remove it, or name strategy.map_scales"
            )
    with noting(problems):
        if plan is not None and Signal.FEATURES in plan.reads:
            resolve_extractor(config.features, description)
        else:
            require_known_extractor(config.features.extractor)
    for name in ("guidance", "temperature"):
        value = getattr(config.sampling, name)
        with noting(problems):
            if value is not None:
                per_scale(name, value, description.num_scales)
    with noting(problems):
        check_top_k(description, config.sampling.top_k)
    with noting(problems):
        confidences(description, config.sampling.confidence)
    # The stand-in for a reward that is not a number is the lowest one: the next score would be a huge gain.
    selections = () if plan is None else plan.selections
    potentials = [getattr(selection.operator, "potential", None) for selection in selections]
    if PotentialKind.DIFF in potentials and config.reward.nonfinite == "worst":
        problems.append(
            "reward.nonfinite: expected 'error' with strategy.potential diff, got 'worst': a trajectory "
            "that once had no reward would gain without limit at its next one; set it, or another potential"
        )
    if config.engine.deterministic and config.cluster.batch_tokens is not None:
        problems.append(
            "cluster.batch_tokens: expected none with engine.deterministic, whose passes are always full, "
            f"got {config.cluster.batch_tokens}; remove it and lower engine.micro_batch_rows"
        )


def _check_device(config: JobConfig, problems: list[str], *, here: bool) -> None:
    """Find what asks for a GPU where there is none; torch is imported only where something does."""
    verifiers = config.verifiers
    if verifiers.replicas and config.cluster.in_process:
        problems.append(
            f"verifiers.replicas: expected 0 with cluster.in_process, which has no actors, got "
            f"{verifiers.replicas}; remove one"
        )
    replica_gpus = verifiers.replicas * (verifiers.gpus_per_replica or 0.0)
    asked = {
        "verifiers.replicas times gpus_per_replica": replica_gpus,
        "cluster.gpus_per_worker": config.cluster.gpus_per_worker or 0.0,
    }
    for setting, count in asked.items():
        if here and count:
            with noting(problems):
                _require_gpus(setting, count)
    device = "cpu" if config.cluster.gpus_per_worker == 0 else config.model.device
    if here and (device.startswith("cuda") or (device == "auto" and _asks_for_gpu(config))):
        with noting(problems):
            check_execution(config, resolve_device(device).type)
    elif device == "cpu":
        with noting(problems):
            check_execution(config, device)


def _require_gpus(setting: str, count: float) -> None:
    """Refuse what this machine has too few GPUs for: nobody can add one to a cluster that is started here."""
    import torch

    found = torch.cuda.device_count()
    if found < count:
        raise ConfigurationError(
            f"{setting}: expected at most the GPUs of this machine, which has {found}, got {count:g}; lower "
            "it (0 is CPUs), or name a cluster (cluster.address)"
        )


def _asks_for_gpu(config: JobConfig) -> bool:
    """Whether a job's engine settings are for GPUs only."""
    return config.engine.cuda_graphs == "always" or config.engine.kernels == "fused"


def check_execution(config: JobConfig, device: str) -> None:
    """Refuse ways to compute that a device does not have.

    Args:
        device: "cpu" or "cuda", of this machine.

    Raises:
        ConfigurationError: with all of them.
    """
    if not _asks_for_gpu(config):
        return
    # torch, which few settings need before a model is loaded.
    from ttsvar_ray.kernels.operations import uses_fused
    from ttsvar_ray.models.recorded_steps import cuda_recorder

    problems: list[str] = []
    with noting(problems):
        cuda_recorder(config.engine.cuda_graphs, device)
    if config.engine.kernels == "fused":
        with noting(problems):
            uses_fused("fused", device)
    if problems:
        raise ConfigurationError(problems)
