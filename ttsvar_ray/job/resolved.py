"""A job, understood once: from settings to a plan and to everything else that they mean.

Comes in: a valid `JobConfig`. Goes out: a `ResolvedJob`, which is handed on to whatever runs, prints or
simulates the job. What a setting leaves open ("auto", None) is filled in here from the model's own
config.json, and nowhere else. No weights are read and no device is touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ttsvar_ray.config import FeaturesConfig, JobConfig
from ttsvar_ray.coordination.settings import CoordinatorSettings, rows_by_segment
from ttsvar_ray.engine.encode import DEFAULT_PNG_LEVEL, DEFAULT_QUALITY
from ttsvar_ray.errors import CheckpointError, ConfigurationError, noting
from ttsvar_ray.job.parts import (
    VISION_LANGUAGE,
    NamedPart,
    combination,
    joint_component,
    require_known_extractor,
    resolve_extractor,
    resolve_rewards,
)
from ttsvar_ray.models.description import ModelChoice, ModelDescription
from ttsvar_ray.models.registry import check_top_k, confidences, describe_model
from ttsvar_ray.models.sampling import per_scale
from ttsvar_ray.own_code import is_own
from ttsvar_ray.prompts.rewrite import rewriter_of
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import FinalChoice, Plan, selection_words
from ttsvar_ray.search.presets import FEWEST_SCALES, one_based_selections
from ttsvar_ray.search.strategy import (
    SelectionSetting,
    Strategy,
    compile_plan,
    settings_read_by,
)
from ttsvar_ray.search.validation import require_a_final_choice
from ttsvar_ray.types import PotentialKind

_MODEL_PLAN = (
    "batch_schedule",
    "cluster_scales",
    "resample_scales",
    "selections",
    "potential",
    "lambda",
)
"""Settings that a model's own plan may have."""


@dataclass(frozen=True, kw_only=True)
class ResolvedJob:
    """What a job's settings mean.

    Attributes:
        config: the settings, as they were given.
        description: of the model.
        plan: what is done to each prompt.
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
    def pass_rows(self) -> tuple[int, ...] | None:
        """Rows that every forward pass of a segment has; None where they are as many as come."""
        engine = self.config.engine
        return rows_by_segment(engine.micro_batch_rows, self.plan) if engine.deterministic else None

    @property
    def coordinator_settings(self) -> CoordinatorSettings:
        """What every cell of the job, and its simulation, goes by."""
        return coordinator_settings(self.config)


def resolve(
    config: JobConfig, *, needs_parts: bool = False, selections: Sequence[SelectionSetting] | None = None
) -> ResolvedJob:
    """Understand a job's settings.

    Args:
        config: the settings.
        needs_parts: also find what is wrong with the reward, the features and the sampling, and whether
            their files are there; not for looking at plans.
        selections: of the plan, in place of `strategy.selections`: operators may be objects here.

    Raises:
        ConfigurationError: with every problem.
        CheckpointError: a model directory that cannot be read.
    """
    description = describe_model(model_choice(config))
    problems: list[str] = []
    plan: Plan | None = None
    with noting(problems):
        plan = _build_plan(config, description, selections)
        _check_rows(config, plan)
    with noting(problems):
        if config.prompts.rewrite is not None:
            rewriter_of(config.prompts.rewrite)
    if needs_parts:
        _check_parts(config, description, plan, problems)
    if problems or plan is None:
        raise ConfigurationError(problems)
    return ResolvedJob(config=config, description=description, plan=plan)


def plan_note(job: ResolvedJob) -> str:
    """Return what somebody who reads the settings may not expect of the plan; or ""."""
    notes = (_left_plan_note(job), _unread_features_note(job), _unpriced_note(job))
    return "; ".join(note for note in notes if note)


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


def _unpriced_note(job: ResolvedJob) -> str:
    """Return which parts have code of the user's, whose cost nobody knows; or ""."""
    section = job.config.reward
    named = [*(section.members or [section.name])]
    if Signal.FEATURES in job.plan.reads:
        named.append(job.config.features.extractor)
    unknown = [name for name in named if is_own(name) and name != VISION_LANGUAGE]
    return (
        f"costs, memory and times are without {' and '.join(unknown)}, which nobody knows" if unknown else ""
    )


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
    return CoordinatorSettings(
        spread=cluster.spread,
        max_attempts=cluster.max_attempts,
        keep=config.output.keep,
        trace_bits=config.output.trace == "bits",
        batch_tokens=cluster.batch_tokens,
        deadline_ceiling_seconds=cluster.segment_timeout_s,
        deadline_floor_seconds=min(CoordinatorSettings().deadline_floor_seconds, cluster.segment_timeout_s),
    )


def _build_plan(
    config: JobConfig, description: ModelDescription, selections: Sequence[SelectionSetting] | None
) -> Plan:
    """Compile the plan.

    Settings that are None come from the model's own plan (`strategy.plan: model`) or from the preset
    (`published`). A model's batch schedule belongs to its selections: where the job names selection
    scales, it is not used, nor are its potential and lambda where the job has no resampling; where it names
    the operators, too, nothing of the model's plan is. An adaptive search uses nothing of it.
    """
    strategy = config.strategy
    if selections is None and strategy.selections is not None:
        selections = [
            SelectionSetting(scale=one.scale, operator=one.operator, options=one.options)
            for one in strategy.selections
        ]
    reads_model = strategy.plan == "model" and selections is None and strategy.name != Strategy.ADAPTIVE.value
    settings = _own_plan(description, Strategy(strategy.name)) if reads_model else {}
    if strategy.plan == "published-1-based" and selections is None:
        settings = _one_based(description.num_scales, Strategy(strategy.name))
    given = {
        "batch_schedule": strategy.batch_schedule,
        "cluster_scales": strategy.cluster_scales,
        "resample_scales": strategy.resample_scales,
        "potential": strategy.potential,
        "lambda": strategy.lambda_,
    }
    if strategy.cluster_scales is not None or strategy.resample_scales is not None:
        settings.pop("batch_schedule", None)
        settings.pop("selections", None)
    if own := settings.pop("selections", None):
        selections = [SelectionSetting(**one) for one in own]
    if strategy.resample_scales == ():
        settings = {name: value for name, value in settings.items() if name not in ("potential", "lambda")}
    settings |= {name: value for name, value in given.items() if value is not None}
    try:
        plan = compile_plan(
            scale_schedule=description.scale_schedule,
            strategy=strategy.name,
            n=strategy.n,
            batch_schedule=settings.get("batch_schedule"),
            cluster_scales=settings.get("cluster_scales"),
            resample_scales=settings.get("resample_scales"),
            selections=selections,
            potential=settings.get("potential"),
            lambda_=settings.get("lambda"),
            scheme=strategy.scheme,
            cluster_restarts=strategy.cluster_restarts,
            joint_component=joint_component(config.features, description),
            max_rounds=strategy.max_rounds,
            growth=strategy.growth,
            reject_below=strategy.reject_below,
            stop_at=strategy.stop_at,
            final=_final_choice(config),
        )
        if strategy.final_reward is not None:
            require_a_final_choice(plan)
    except ConfigurationError as error:
        problems = [f"strategy.{problem}" for problem in error.problems]
        raise ConfigurationError(
            [problem.replace("strategy.strategy:", "strategy.name:", 1) for problem in problems]
        ) from None
    members, how = config.reward.members, combination(config.reward)
    if members is None:
        return plan
    chosen_by = config.strategy.final_reward
    final = plan.final
    if chosen_by is not None:
        final = replace(final, member=list(members).index(chosen_by))
        if len(members) == 2 and config.reward.combine is not None:
            raise ConfigurationError(
                "reward.combine: expected none, because one of the two members chooses "
                "(strategy.final_reward) and the other steers alone; remove it"
            )
        how = None if len(members) == 2 else how
    if plan.strategy == Strategy.ADAPTIVE.value and how is not None:
        raise ConfigurationError(
            "reward.name: expected one reward with strategy adaptive, got an ensemble: its combined reward "
            "compares the images of one population, and thresholds hold for all; use one of its members"
        )
    return replace(plan, reward_members=len(members), combination=how, final=final)


def _final_choice(config: JobConfig) -> FinalChoice | None:
    """Return how final images are ranked, but for the place of a reward in its ensemble.

    Raises:
        ConfigurationError: a reward that the ensemble has not.
    """
    section = config.strategy
    members = config.reward.members or {}
    if section.final_reward is not None and section.final_reward not in members:
        expected = f"one of {', '.join(members)}" if members else "none without an ensemble"
        raise ConfigurationError(
            f"final_reward: expected {expected}, got {section.final_reward!r}; name both rewards in "
            "reward.members"
        )
    return FinalChoice(
        mean_of=tuple(sorted(set(section.final_mean_of or ()))),
        ties_by_likelihood=section.final_ties == "likelihood",
    )


def _one_based(num_scales: int, strategy: Strategy) -> dict[str, Any]:
    """Return the selection scales of Algorithm 1 as it is printed, where the strategy has such.

    Raises:
        ConfigurationError: a model with too few scales for any of them.
    """
    preset = one_based_selections(num_scales) if num_scales >= FEWEST_SCALES else ()
    if not preset:
        raise ConfigurationError(
            f"plan: published-1-based selects between the first and the last scale but one, and the model "
            f"has {num_scales}; use published"
        )
    read = settings_read_by(strategy)
    kinds = {"cluster_scales": "cluster", "resample_scales": "resample"}
    return {
        setting: [scale for scale, operator in preset if operator == kind]
        for setting, kind in kinds.items()
        if setting in read and strategy is not Strategy.ADAPTIVE
    }


def _own_plan(description: ModelDescription, strategy: Strategy) -> dict[str, Any]:
    """Return those of a model's own search settings that the strategy reads."""
    unknown = sorted(set(description.plan) - {*_MODEL_PLAN})
    if unknown:
        raise CheckpointError(
            f"{description.source}: plan: unknown key {unknown[0]!r}; known keys: {', '.join(_MODEL_PLAN)}"
        )
    read = settings_read_by(strategy)
    return {name: value for name, value in description.plan.items() if name in read and value is not None}


def _check_parts(
    config: JobConfig, description: ModelDescription, plan: Plan | None, problems: list[str]
) -> None:
    """Find what is wrong with a job's reward, features and sampling without loading anything."""
    with noting(problems):
        resolve_rewards(config.reward, description)
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


def _check_rows(config: JobConfig, plan: Plan) -> None:
    """Refuse micro-batches that are not one number per segment, or that rise in a deterministic job."""
    setting, rows = "engine.micro_batch_rows", config.engine.micro_batch_rows
    if isinstance(rows, int):
        return
    scales = ", ".join(f"{segment.first_scale}-{segment.last_scale}" for segment in plan.segments)
    if len(rows) != len(plan.segments):
        raise ConfigurationError(
            f"{setting}: expected one number, or one for each of the plan's {len(plan.segments)} segments "
            f"(scales {scales}), got {len(rows)}"
        )
    if config.engine.deterministic and any(later > earlier for earlier, later in itertools.pairwise(rows)):
        raise ConfigurationError(
            f"{setting}: expected numbers that never rise with engine.deterministic, got {list(rows)}: what "
            "a segment goes on from may have to be rebuilt in the passes of the segments before; lower the "
            "later ones"
        )
