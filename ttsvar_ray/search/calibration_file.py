"""What a calibration knows, as a file: quantiles of rewards by scale, and the best thresholds for each cost.

Thresholds are rewards, and rewards mean something else in every model and reward. So a job may name a file
and say `{quantile: 0.7}` or a budget; what that means is looked up once, where settings are read, and the
numbers travel on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ttsvar_ray.search.plan import Rounds

FORMAT = "ttsvar-ray calibration 1"
_STEPS = 101
"""Quantiles that are kept of each scale: every hundredth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Thresholds of an adaptive search of single trajectories, and what they came to on the pool.

    Attributes:
        max_rounds, reject_below, stop_at: as the settings of the strategy; scales as text, as JSON has them.
        cost: images a prompt, on average.
        quality, held_out: what the policy was chosen for, on the prompts that it was chosen on, and on
            others.
        abandoned: share of the rounds that came to each of those scales and ended there.
        satisfied: share of the finished rounds that no further one follows.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_rounds: int
    reject_below: Mapping[str, float]
    stop_at: float
    cost: float
    quality: float
    held_out: float
    abandoned: Mapping[str, float]
    satisfied: float

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the strategy that this policy is."""
        return {
            "max_rounds": self.max_rounds,
            "reject_below": {int(scale): least for scale, least in self.reject_below.items()},
            "stop_at": self.stop_at,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A calibration of one model and reward.

    Attributes:
        model, reward, reward_options: as the job has them.
        prompts, trajectories: of the pool.
        quantiles: of the rewards at each scale that was scored, by scale as text: every hundredth from the
            lowest to the highest.
        policies: the best of each budget that was tried, by ascending cost.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    model: str
    reward: str
    prompts: int
    trajectories: int
    quantiles: Mapping[str, Sequence[float]]
    reward_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    policies: tuple[Policy, ...] = ()

    @property
    def last_scale(self) -> int:
        """The scale of the final images."""
        return max(map(int, self.quantiles))

    def reward_at(self, scale: int, share: float) -> float | None:
        """Return the reward that this share of trajectories is below; None at a scale that was not seen."""
        known = self.quantiles.get(str(scale))
        if known is None:
            return None
        return round(float(np.interp(share, np.linspace(0, 1, len(known)), known)), 6)

    def policy_within(self, budget: float) -> Policy | None:
        """Return the policy of the highest quality within a budget, in images; None: none is that cheap."""
        within = [one for one in self.policies if one.cost <= budget]
        return max(within, key=lambda one: (one.quality, -one.cost)) if within else None

    def policy_of(self, rounds: Rounds) -> Policy | None:
        """Return the policy that has these thresholds, if one has."""
        for one in self.policies:
            wanted = [(int(scale), least) for scale, least in sorted(one.reject_below.items())]
            if one.stop_at == rounds.stop_at and wanted == [*rounds.reject_below]:
                return one
        return None

    def to_json(self) -> str:
        """Return the text of the file."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"


def quantiles(rewards: np.ndarray) -> list[float]:
    """Return every hundredth quantile of rewards."""
    return [round(float(one), 6) for one in np.quantile(rewards, np.linspace(0, 1, _STEPS))]
