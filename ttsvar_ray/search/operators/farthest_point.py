"""Farthest-point selection: each next trajectory is the one farthest from all that are kept.

Source: T. Gonzalez, Clustering to minimize the maximum intercluster distance (1985), the greedy
2-approximation of the k-centre problem.
Differs: it begins with the most central trajectory, not with any, and so draws nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsvar_ray.search.operators.distances import distances
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal


@dataclass(frozen=True, slots=True, kw_only=True)
class FarthestPoint(Operator):
    """Keeps the trajectory nearest to all others, then one after the other the farthest from those kept; of
    equal ones, the lower slot. Beside `cluster` it keeps what is unusual, not what is typical."""

    name: ClassVar[str] = "farthest-point"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.FEATURES})

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        """Keep one after the other; the trace gets as `place` when each was (-1: not)."""
        assert evidence.features is not None
        apart = distances(evidence.features)
        place = np.full(evidence.population, -1)
        chosen = int(apart.sum(axis=1).argmin())
        gap = np.full(evidence.population, np.inf)
        for number in range(count):
            place[chosen] = number
            gap = np.minimum(gap, apart[chosen])
            chosen = int(np.where(place < 0, gap, -1.0).argmax())
        return Choice(ancestor_index=np.flatnonzero(place >= 0), numbers={"place": place})
