"""What a selection operator is: it reads some of what was seen of a population, and says who goes on.

    Evidence(features, reward_history) --select(evidence, count, rng)--> Choice(ancestor_index, numbers)

Comes in: a whole population in slot order, every number finite. Goes out: the slots of the survivors. An
operator sees no model, no image, no worker and no clock, and draws from the stream it is handed only.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from ttsvar_ray.errors import FeatureError, RewardError, SelectionError
from ttsvar_ray.types import Float64Array, Int64Array


class Signal(str, enum.Enum):
    """What can be seen of a population. Features and rewards cost a decode of every image, and a network over
    it; the likelihood costs nothing: the bits were drawn by it."""

    FEATURES = "features"
    REWARDS = "rewards"
    LIKELIHOOD = "likelihood"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """What an operator sees: those signals that it reads, of every trajectory, in slot order.

    Attributes:
        population: how many trajectories there are.
        features: [population, feature_dim]; None where the operator does not read them.
        reward_history: float64 [population, scales], one column for each of the operator's `scored_scales`,
            ascending; None where it does not read rewards. Rows follow their trajectory's lineage.
        log_likelihood: float64 [population], nats: the log probability of all bits of each lineage so far, as
            the model would draw them without top-p and top-k; None where it is not read.

    Raises:
        FeatureError, RewardError, SelectionError: a number is NaN or infinite.
    """

    population: int
    features: npt.NDArray[np.floating] | None = None
    reward_history: Float64Array | None = None
    log_likelihood: Float64Array | None = None

    def __post_init__(self) -> None:
        if self.features is not None and (bad := _slots_not_finite(self.features)):
            raise FeatureError(
                f"features: expected finite numbers, got NaN or infinity in slots {bad}; check the feature "
                "extractor and its dtype."
            )
        if self.log_likelihood is not None and (bad := _slots_not_finite(self.log_likelihood)):
            raise SelectionError(
                f"log_likelihood: expected finite numbers, got NaN or infinity in slots {bad}; check the "
                "model's dtype."
            )
        if self.reward_history is not None and (bad := _slots_not_finite(self.reward_history)):
            raise RewardError(
                f"reward_history: expected finite rewards, got NaN or infinity in slots {bad}; fix the "
                "reward model, or set reward.nonfinite to 'worst' to let such images lose."
            )


def _slots_not_finite(values: npt.NDArray[np.floating]) -> list[int]:
    finite = np.isfinite(values)
    if finite.all():
        return []
    slots: list[int] = np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1)).tolist()
    return slots


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """What an operator decided, and the numbers behind it.

    Attributes:
        ancestor_index: int [count] slots in the population before. Their order means nothing: a survivor's
            further random numbers are named by its new slot, and `select` sorts them.
        numbers: what the trace keeps beside them, by name: one number, or one for each trajectory.
    """

    ancestor_index: Int64Array
    numbers: Mapping[str, npt.ArrayLike] = field(default_factory=dict)


class Operator(Protocol):
    """One way to choose survivors. Operators are frozen dataclasses that derive from this: their fields
    are their options (`option` gives one a range), equal options make equal operators.

    Attributes:
        name: what settings, plan and trace call it, and what its random streams are named by: two
            operators of different names draw different numbers.
        reads: the signals it needs at its scale.
        repeats: whether it may choose a trajectory more than once. One that never does must drop at least
            one, so that it can neither keep a whole population nor stand at scale 0.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Signal]]
    repeats: ClassVar[bool] = False

    def scored_scales(self, scale_index: int) -> tuple[int, ...]:
        """Return the scales, up to its own, whose rewards it needs at a scale; ascending."""
        return (scale_index,) if Signal.REWARDS in self.reads else ()

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        """Choose `count` survivors of a population.

        Equal arguments must give equal choices, on any machine.
        """
        raise NotImplementedError

    def describe(self) -> str:
        """Return its options in words for the plan report; empty where there is nothing to say."""
        return ""
