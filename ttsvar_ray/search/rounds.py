"""What follows a round of an adaptive search: another one, the end of an abandoned one, or nothing.

Pure functions of how rounds ended: `search.loop` asks them, and so does the coordinator. A plan that is not
adaptive has one round, which is never abandoned.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.selection import rank_images


class StopReason(str, enum.Enum):
    """Why no further round followed."""

    SATISFIED = "satisfied"
    """A final image was good enough."""
    ROUNDS = "rounds"
    """All rounds were run."""
    ABANDONED = "abandoned"
    """All rounds were abandoned; the most promising trajectory of them was finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEnd:
    """How a round ended.

    Attributes:
        scale_index: its last scale.
        slot: of the trajectory of the highest reward there, the lowest slot of equal ones.
        reward: of that trajectory.
        was_abandoned: whether it had been abandoned, and that trajectory alone was finished.
    """

    round_index: int
    scale_index: int
    slot: int
    reward: float
    was_abandoned: bool = False

    @classmethod
    def of(
        cls,
        round_index: int,
        scale_index: int,
        rewards: npt.NDArray[np.floating],
        *,
        was_abandoned: bool = False,
    ) -> RoundEnd:
        """Return how a round ended with these rewards of its population.

        Raises:
            RewardError: a reward is NaN or infinite.
        """
        slot = int(rank_images(rewards)[0])
        return cls(
            round_index=round_index,
            scale_index=scale_index,
            slot=slot,
            reward=float(rewards[slot]),
            was_abandoned=was_abandoned,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Begin a round."""

    round_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Run the best trajectory of an abandoned round to its end, alone."""

    end: RoundEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The prompt is done."""

    reason: StopReason


Following: TypeAlias = Begin | Finish | Stop


def rejection(plan: Plan, scale_index: int, reward_history: npt.NDArray[np.floating]) -> float | None:
    """Return the reward that a whole population misses at a scale where it may be abandoned, or None.

    Args:
        reward_history: [population, scored scales up to this one].
    """
    least = dict(plan.rounds.reject_below).get(scale_index)
    return least if least is not None and float(reward_history[:, -1].max()) < least else None


def what_follows(plan: Plan, ends: Sequence[RoundEnd]) -> Following:
    """Return what is done after rounds that ended so; at first, that is to begin.

    Of abandoned rounds the one that came furthest is finished: a reward of a later scale says more. Of those
    that came as far it is the one of the highest reward, of equal ones the earliest.
    """
    rounds = plan.rounds
    if ends and ends[-1].was_abandoned:
        return Stop(reason=StopReason.ABANDONED)
    finished = [end.reward for end in ends if end.scale_index == plan.num_scales - 1]
    if finished and rounds.stop_at is not None and finished[-1] >= rounds.stop_at:
        return Stop(reason=StopReason.SATISFIED)
    if len(ends) < rounds.most:
        return Begin(round_index=len(ends))
    if finished:
        return Stop(reason=StopReason.ROUNDS)
    return Finish(end=max(ends, key=lambda end: (end.scale_index, end.reward, -end.round_index)))
