"""Greedy selection: keep the most promising trajectories, each once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal
from ttsvar_ray.search.potentials import log_potentials, scales_read
from ttsvar_ray.types import PotentialKind


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(Operator):
    """Keeps the trajectories of the highest potential; of equal ones, the lower slots. Draws nothing."""

    name: ClassVar[str] = "top-k"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.REWARDS})

    potential: PotentialKind = PotentialKind.VALUE

    def scored_scales(self, scale_index: int) -> tuple[int, ...]:
        """Return the scales that the potential reads."""
        return scales_read(self.potential, scale_index)

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        """Keep the best; the trace gets each trajectory's `potential`."""
        assert evidence.reward_history is not None
        potential = log_potentials(evidence.reward_history, self.potential, 1.0)
        best = np.argsort(-potential, kind="stable")[:count]
        return Choice(ancestor_index=best, numbers={"potential": potential})

    def describe(self) -> str:
        """Return the potential."""
        return f"highest potential {self.potential.value}"
