"""The plan that a job's settings mean: what they say, what the model's own plan says, what is published."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.coordination.settings import rows_by_segment
from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.job.parts import combination, joint_component
from ttsvar_ray.models.description import ModelDescription
from ttsvar_ray.search.plan import FinalChoice, Plan
from ttsvar_ray.search.presets import FEWEST_SCALES, published_selections
from ttsvar_ray.search.strategy import SelectionSetting, Strategy, compile_plan
from ttsvar_ray.search.validation import require_a_final_choice

_MODEL_PLAN = ("batch_schedule", "cluster_scales", "resample_scales", "selections", "potential", "lambda")
"""Settings that a model's own plan may have."""


def build_plan(
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
            map_scales=strategy.map_scales,
            look_ahead=strategy.look_ahead,
        )
        if strategy.final_reward is not None:
            require_a_final_choice(plan)
    except ConfigurationError as error:
        problems = [f"strategy.{problem}" for problem in error.problems]
        raise ConfigurationError(
            [problem.replace("strategy.strategy:", "strategy.name:", 1) for problem in problems]
        ) from None
    return plan if config.reward.members is None else _with_ensemble(plan, config)


def _with_ensemble(plan: Plan, config: JobConfig) -> Plan:
    """Return a plan that is steered by an ensemble, and whose images one of its members may choose."""
    if plan.reads_maps:
        raise ConfigurationError(
            "strategy.map_scales: expected none with an ensemble, whose members would all have to read "
            "feature maps; remove it, or name one reward"
        )
    members, how = config.reward.members or {}, combination(config.reward)
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
    """Return how final images are ranked, but for the place of a reward in its ensemble."""
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
    """Return the selection scales of Algorithm 1 as it is printed, where the strategy has such."""
    preset = published_selections(num_scales) if num_scales >= FEWEST_SCALES else ()
    # The published code counts scales from 0. So read, each selection comes one scale earlier, and those that
    # would come after the first scale, where nothing can be dropped yet, are not there.
    preset = tuple((scale - 1, operator) for scale, operator in preset if scale > 1)
    if not preset:
        raise ConfigurationError(
            f"plan: published-1-based selects between the first and the last scale but one, and the model "
            f"has {num_scales}; use published"
        )
    read = strategy.settings
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
    read = strategy.settings
    return {name: value for name, value in description.plan.items() if name in read and value is not None}


USUAL_ROWS = 32
"""Trajectories of a micro-batch on a CPU, and where nobody knows the device."""


def rows_of(config: JobConfig, plan: Plan) -> tuple[int, ...]:
    """Return the most trajectories of a micro-batch, one number per segment; of "auto" the usual ones."""
    rows = config.engine.micro_batch_rows
    return rows_by_segment(USUAL_ROWS if rows == "auto" else rows, plan)


def check_rows(config: JobConfig, plan: Plan) -> None:
    """Refuse micro-batches that are not one number per segment, or that rise in a deterministic job."""
    setting, rows = "engine.micro_batch_rows", config.engine.micro_batch_rows
    if isinstance(rows, int | str):
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
