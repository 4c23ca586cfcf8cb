"""A plan replayed on trajectories that were drawn to the end: what it would have kept, with nothing drawn.

Algorithm 1 itself runs (`search.loop`); in place of a model it is shown what the pool has. A trajectory that
a plan keeps once goes on in the pool as it would have by itself, so that a plan that keeps none twice is
replayed exactly: pool and run are draws of the same distribution. The copies of one that is kept twice would
have gone their own ways, and here they stay the same: such a replay is an approximation, and says so
(`repeats`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ttsvar_ray.search.loop import Seen, search
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Look, Plan, Segment
from ttsvar_ray.types import Float64Array, Int64Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectories:
    """Complete trajectories of one prompt, all drawn by the same settings.

    Attributes:
        scales: that were scored, ascending; the model's last one is the last.
        rewards: float64 [trajectories, scales].
        features: [trajectories, feature_dim] by scale.
        log_likelihood: float64 [trajectories] by scale, nats of all bits up to it.
        looked: float64 [trajectories] by look: rewards of a scale that were had so (`search.plan.Look`).
    """

    scales: tuple[int, ...]
    rewards: Float64Array
    features: Mapping[int, npt.NDArray[np.floating]] = field(default_factory=dict)
    log_likelihood: Mapping[int, Float64Array] = field(default_factory=dict)
    looked: Mapping[Look, Float64Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """How a replay ended.

    Attributes:
        best: the trajectory that the plan would have returned.
        trajectories: that ran each segment of the plan, over all rounds.
        repeats: trajectories that were kept once more than once; 0 for an exact replay.
        rounds: how many were begun.
    """

    best: int
    trajectories: tuple[int, ...]
    repeats: int
    rounds: int


def trajectories_needed(plan: Plan) -> int:
    """Return how many trajectories a plan may begin, over all its rounds."""
    return sum(plan.of_round(one).population_before[0] for one in range(plan.rounds.most))


def replay_plan(
    plan: Plan, pool: Trajectories, *, prompt_key: str, order: Sequence[int] | Int64Array, run_seed: int = 0
) -> Replayed:
    """Return what a plan comes to on a prompt's trajectories.

    Args:
        plan: of one reward.
        pool: with the rewards, features and likelihoods that the plan reads.
        prompt_key, run_seed: name the random streams of the selections.
        order: in which trajectories are begun with; other orders are other samples of the same plan.

    Raises:
        ValueError: fewer trajectories than the plan may begin, or a scale that was not looked at.
    """
    if len(order) < trajectories_needed(plan):
        raise ValueError(
            f"replay: expected at least {trajectories_needed(plan)} trajectories for this plan, got "
            f"{len(order)}"
        )
    held: dict[int, Int64Array] = {}
    counts = [0] * len(plan.segments)
    begun = repeats = 0

    def run_segment(segment: Segment, ancestor_index: Int64Array, round_index: int = 0) -> Seen:
        nonlocal begun, repeats
        if segment.index == 0:
            held[round_index] = np.asarray(order[begun : begun + segment.population], dtype=np.int64)
            begun += segment.population
        else:
            held[round_index] = held[round_index][ancestor_index]
            repeats += len(ancestor_index) - len(set(ancestor_index.tolist()))
        counts[segment.index] += segment.population
        return _seen(plan, pool, segment, held[round_index])

    found = search(plan, run_segment, run_seed=run_seed, prompt_key=prompt_key)
    place, slot = found.ranking[0]
    return Replayed(
        best=int(held[found.rounds[place].end.round_index][slot]),
        trajectories=tuple(counts),
        repeats=repeats,
        rounds=len(held),
    )


def _seen(plan: Plan, pool: Trajectories, segment: Segment, members: Int64Array) -> Seen:
    """Return what the plan sees of these trajectories in a segment."""
    try:
        columns = [_rewards(pool, scale, segment.look(scale)) for scale in segment.scored_scales]
        features = pool.features[segment.last_scale] if Signal.FEATURES in segment.reads else None
        # After the last selection nothing reads likelihoods but ties, which a pool of floats hardly has.
        likelihood = None if segment.is_last or not plan.needs_likelihood else _of_segment(pool, segment)
    except (ValueError, KeyError):
        raise ValueError(
            f"replay: the plan looks at scales {segment.first_scale} to {segment.last_scale}, and the pool "
            f"was scored at {list(pool.scales)}, embedded at {sorted(pool.features)}, looked at by "
            f"{sorted(pool.looked, key=lambda look: look.scale_index)}"
        ) from None
    return Seen(
        scores=np.stack([column[members] for column in columns], axis=1)[..., None]
        if columns
        else np.empty((len(members), 0, 1)),
        features=None if features is None else features[members],
        log_likelihood=None if likelihood is None else likelihood[members],
    )


def _rewards(pool: Trajectories, scale: int, look: Look | None) -> Float64Array:
    """Return the rewards of one scale as a plan has them, [trajectories]."""
    return pool.rewards[:, pool.scales.index(scale)] if look is None else pool.looked[look]


def _of_segment(pool: Trajectories, segment: Segment) -> Float64Array:
    """Return the log likelihood of a segment's own scales, [trajectories]."""
    before = pool.log_likelihood[segment.first_scale - 1] if segment.first_scale else 0.0
    return pool.log_likelihood[segment.last_scale] - before
