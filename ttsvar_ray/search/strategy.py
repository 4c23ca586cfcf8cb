"""Strategies: presets of one plan, compiled from settings.

raw          one trajectory, no selection
best-of-n    n trajectories to the end, the best by reward
importance   n trajectories throughout, resampled with replacement at fine scales
tts-var      many coarse trajectories, few fine ones: clustering, then resampling
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.search.plan import Plan, Selection
from ttsvar_ray.search.potentials import scored_scales
from ttsvar_ray.search.presets import (
    DEFAULT_CLUSTER_RESTARTS,
    DEFAULT_LAMBDA,
    FEWEST_SCALES,
    default_batch_schedule,
    published_selections,
)
from ttsvar_ray.search.principal_component import ComponentSign
from ttsvar_ray.search.validation import (
    batch_schedule_problems,
    is_whole_number,
    selection_scale_problems,
)
from ttsvar_ray.types import (
    PotentialKind,
    ResamplingScheme,
    ScaleSchedule,
    SelectionKind,
)


class Strategy(str, enum.Enum):
    """The presets."""

    RAW = "raw"
    BEST_OF_N = "best-of-n"
    IMPORTANCE = "importance"
    TTS_VAR = "tts-var"


_READS = {
    Strategy.RAW: frozenset[str](),
    Strategy.BEST_OF_N: frozenset[str](),
    Strategy.IMPORTANCE: frozenset({"resample_scales"}),
    Strategy.TTS_VAR: frozenset({"batch_schedule", "cluster_scales", "resample_scales"}),
}
_RESAMPLING_READS = frozenset({"potential", "lambda", "scheme"})
_CLUSTERING_READS = frozenset({"cluster_restarts"})


def settings_read_by(strategy: Strategy) -> frozenset[str]:
    """Return the settings that plans of a strategy may read; which of them one reads, its selections say."""
    read = _READS[strategy]
    if "resample_scales" in read:
        read |= _RESAMPLING_READS
    return read | _CLUSTERING_READS if "cluster_scales" in read else read


def compile_plan(
    *,
    scale_schedule: ScaleSchedule,
    strategy: Strategy | str = Strategy.TTS_VAR,
    n: int = 1,
    batch_schedule: Sequence[int] | None = None,
    cluster_scales: Sequence[int] | None = None,
    resample_scales: Sequence[int] | None = None,
    potential: PotentialKind | str | None = None,
    lambda_: float | None = None,
    scheme: ResamplingScheme | str | None = None,
    cluster_restarts: int | None = None,
    joint_component: ComponentSign | None = None,
) -> Plan:
    """Return the plan that these settings mean for a model, or say everything that is wrong with them.

    None means the preset's own choice. A setting that this plan would not read is refused.

    Args:
        scale_schedule: the model's (h, w) tokens per scale.
        strategy: which preset.
        n: the N of the paper, >= 1: for best-of-n and importance the population, for tts-var the
            factor of the whole batch schedule.
        batch_schedule: survivors after each scale for N = 1 (tts-var), multiplied by n. By default
            the published 8 8 6 6 6 4 2 2 2 1 1 1 1; for other selections, equal steps from 8 to 1.
        cluster_scales, resample_scales: selection scales; by default the published ones, scaled to
            the model's number of scales. An empty list means none.
        potential: value (default), diff, max or sum.
        lambda_: sharpness of the potential, >= 0, by default 10.
        scheme: multinomial (default), systematic or stratified.
        cluster_restarts: k-means restarts, >= 1, by default 10.
        joint_component: how the extractor's features are reduced (`Plan.joint_component`); not read by a
            plan that clusters nowhere.

    Raises:
        ConfigurationError: with every problem found.

    Source: TTS-VAR (arXiv 2507.18537), Algorithm 1 and its experiments; importance and best-of-n are
        its baselines.
    Differs: the published code checks nothing here, and fails after the work where a schedule falls
        at a scale without a selection.
    """
    problems = _scale_schedule_problems(scale_schedule)
    name = _member(Strategy, "strategy", strategy, problems)
    potential_kind = _member(PotentialKind, "potential", potential, problems, PotentialKind.VALUE)
    scheme_kind = _member(ResamplingScheme, "scheme", scheme, problems, ResamplingScheme.MULTINOMIAL)
    problems += _number_problems(n, lambda_, cluster_restarts)
    if not scale_schedule or name is None:
        raise ConfigurationError(problems)

    num_scales = len(scale_schedule)
    clusters, resamples = _selection_scales(name, num_scales, cluster_scales, resample_scales)
    problems += _missing_selections(name, num_scales, n, clusters or resamples)
    given = {
        "batch_schedule": batch_schedule,
        "cluster_scales": cluster_scales,
        "resample_scales": resample_scales,
        "potential": potential,
        "lambda": lambda_,
        "scheme": None if scheme_kind is ResamplingScheme.MULTINOMIAL else scheme,
        "cluster_restarts": None if cluster_restarts == DEFAULT_CLUSTER_RESTARTS else cluster_restarts,
    }
    readable = (
        _READS[name]
        | (_RESAMPLING_READS if resamples else set())
        | (_CLUSTERING_READS if clusters else set())
    )
    problems += _unread_settings(name, given, readable)
    problems += selection_scale_problems(num_scales, clusters, resamples)
    if batch_schedule is not None and name is Strategy.TTS_VAR:
        problems += batch_schedule_problems(num_scales, batch_schedule, clusters, resamples)
    if problems:
        raise ConfigurationError(problems)
    assert potential_kind is not None
    assert scheme_kind is not None

    if name is not Strategy.TTS_VAR:
        schedule = (1,) * num_scales
    elif batch_schedule is not None:
        schedule = tuple(int(entry) for entry in batch_schedule)
    else:
        schedule = default_batch_schedule(num_scales, (*clusters, *resamples))
    survivors_after = tuple(entry * int(n) for entry in schedule)
    kinds = {int(scale): SelectionKind.CLUSTER for scale in clusters}
    kinds |= {int(scale): SelectionKind.RESAMPLE for scale in resamples}
    return Plan(
        strategy=name.value,
        scale_schedule=tuple((int(height), int(width)) for height, width in scale_schedule),
        survivors_after=survivors_after,
        selections=tuple(
            Selection(scale_index=scale, kind=kinds[scale], survivors=survivors_after[scale])
            for scale in sorted(kinds)
        ),
        scored_scales=scored_scales(num_scales, resamples, potential_kind),
        potential=potential_kind,
        lambda_=DEFAULT_LAMBDA if lambda_ is None else float(lambda_),
        scheme=scheme_kind,
        cluster_restarts=int(cluster_restarts or DEFAULT_CLUSTER_RESTARTS),
        joint_component=joint_component if clusters else None,
    )


def _selection_scales(
    strategy: Strategy,
    num_scales: int,
    cluster_scales: Sequence[int] | None,
    resample_scales: Sequence[int] | None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (cluster scales, resample scales): the caller's where given, else the preset's."""
    if strategy in (Strategy.RAW, Strategy.BEST_OF_N):
        return (), ()
    preset = published_selections(num_scales) if num_scales >= FEWEST_SCALES else ()
    clusters = tuple(scale for scale, kind in preset if kind is SelectionKind.CLUSTER)
    resamples = tuple(scale for scale, kind in preset if kind is SelectionKind.RESAMPLE)
    if strategy is Strategy.IMPORTANCE:
        clusters = ()
    elif cluster_scales is not None:
        clusters = tuple(cluster_scales)
    if resample_scales is not None:
        resamples = tuple(resample_scales)
    return clusters, resamples


_Member = TypeVar("_Member", bound=enum.Enum)


def _member(
    kind: type[_Member],
    setting: str,
    value: object,
    problems: list[str],
    default: _Member | None = None,
) -> _Member | None:
    if value is None and default is not None:
        return default
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(str(member.value) for member in kind)
        problems.append(f"{setting}: expected one of {names}, got {value!r}; choose one of them.")
        return None


def _scale_schedule_problems(scale_schedule: ScaleSchedule) -> list[str]:
    if not scale_schedule:
        return ["scale_schedule: expected at least one scale, got none; check the model's configuration."]
    return [
        f"scale_schedule[{scale}]: expected a (height, width) of at least 1 x 1 tokens, got {tuple(grid)}; "
        f"check the model's configuration."
        for scale, grid in enumerate(scale_schedule)
        if len(grid) != 2 or not all(is_whole_number(side) and side >= 1 for side in grid)
    ]


def _number_problems(n: int, lambda_: float | None, cluster_restarts: int | None) -> list[str]:
    problems: list[str] = []
    if not is_whole_number(n) or n < 1:
        problems.append(f"n: expected a whole number of at least 1, got {n!r}; correct it.")
    if lambda_ is not None and (
        isinstance(lambda_, (bool, str)) or not math.isfinite(lambda_) or lambda_ < 0
    ):
        problems.append(
            f"lambda: expected a finite number of at least 0, got {lambda_!r}; 10 is the published value."
        )
    if cluster_restarts is not None and (not is_whole_number(cluster_restarts) or cluster_restarts < 1):
        problems.append(
            f"cluster_restarts: expected a whole number of at least 1, got {cluster_restarts!r}; correct it."
        )
    return problems


def _missing_selections(
    strategy: Strategy, num_scales: int, n: int, selection_scales: Sequence[int]
) -> list[str]:
    if strategy is Strategy.RAW and is_whole_number(n) and n > 1:
        return [f"n: expected 1 (raw draws one image a prompt), got {n}; lower it or use strategy best-of-n."]
    if strategy in (Strategy.RAW, Strategy.BEST_OF_N) or selection_scales:
        return []
    if num_scales < FEWEST_SCALES:
        problem = f"selects between the first and the last scale, and the model has only {num_scales}"
        return [f"strategy: {strategy.value} {problem}; use strategy best-of-n."]
    problem = "without any selection scale is best-of-n"
    return [f"strategy: {strategy.value} {problem}; use that strategy, or add a scale to resample_scales."]


def _unread_settings(strategy: Strategy, given: Mapping[str, object], readable: Collection[str]) -> list[str]:
    """Refuse settings that would change nothing: they are misunderstandings."""
    return [
        f"{setting}: this {strategy.value} plan would not read it, got {value}; remove it, or use a strategy "
        f"or selection scales that do."
        for setting, value in given.items()
        if value is not None and value not in ((), []) and setting not in readable
    ]
