"""The best of each cluster: groups of similar images as in `cluster`, of each the one that promises most.

Clustering keeps the member nearest to its cluster's centre, whatever its reward; where the reward can already
judge, that gives up what it knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsvar_ray.search.operators.cluster import cluster_survivors
from ttsvar_ray.search.operators.options import option
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal
from ttsvar_ray.search.potentials import log_potentials, scales_read
from ttsvar_ray.types import PotentialKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterBest(Operator):
    """Keeps the trajectory of the highest potential of each cluster; of equal ones, the lower slot. Where
    images coincide, so that there are fewer clusters than survivors, the highest potentials of the others go
    on, too.

    Attributes:
        restarts: k-means runs, of which the tightest counts.
    """

    name: ClassVar[str] = "cluster-best"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.FEATURES, Signal.REWARDS})

    restarts: int = option(10, least=1)
    potential: PotentialKind = PotentialKind.VALUE

    def scored_scales(self, scale_index: int) -> tuple[int, ...]:
        """Return the scales that the potential reads."""
        return scales_read(self.potential, scale_index)

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        """Keep the best of each; the trace gets `labels`, each trajectory's cluster, and `potential`."""
        assert evidence.features is not None
        assert evidence.reward_history is not None
        _, labels = cluster_survivors(evidence.features, count, rng, self.restarts)
        potential = log_potentials(evidence.reward_history, self.potential, 1.0)
        order = np.argsort(-potential, kind="stable")
        _, first = np.unique(labels[order], return_index=True)
        others = np.delete(order, first)
        kept = np.concatenate([order[first], others])[:count]
        return Choice(ancestor_index=kept, numbers={"labels": labels, "potential": potential})

    def describe(self) -> str:
        """Return how often k-means starts, and the potential."""
        return f"best of {self.restarts} k-means, highest potential {self.potential.value}"
