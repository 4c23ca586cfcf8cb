"""Greedy maximal marginal relevance: trajectories that promise much and do not look alike.

With q_i the promise of trajectory i and s_ij how alike the images of i and j are, both in [0, 1] over the
population, and t the trade-off, the next one kept is

    argmax over i of  t q_i - (1 - t) max over the kept j of s_ij

and the first one is the most promising. t = 1 is top-k, t = 0 spreads over the features alone.

Source: J. Carbonell and J. Goldstein, The use of MMR, diversity-based reranking for reordering documents and
producing summaries (SIGIR 1998).
Differs: both terms are scaled to the population, so that the trade-off means the same for any reward, any
features and any size of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsvar_ray.search.operators.distances import distances
from ttsvar_ray.search.operators.options import option
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal
from ttsvar_ray.search.potentials import log_potentials, scales_read
from ttsvar_ray.types import Float64Array, PotentialKind


@dataclass(frozen=True, slots=True, kw_only=True)
class DiverseTopK(Operator):
    """Keeps trajectories by promise and by how little they resemble those kept before. Draws nothing.

    Attributes:
        trade_off: 1 for promise alone, 0 for diversity alone.
        potential: how a reward history becomes a promise.
    """

    name: ClassVar[str] = "diverse-top-k"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.FEATURES, Signal.REWARDS})

    trade_off: float = option(0.5, least=0, most=1, advice="1 is top-k, 0 is diversity alone")
    potential: PotentialKind = PotentialKind.VALUE

    def scored_scales(self, scale_index: int) -> tuple[int, ...]:
        """Return the scales that the potential reads."""
        return scales_read(self.potential, scale_index)

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        """Keep one after the other; the trace gets `potential`, and as `place` when each was (-1: not)."""
        assert evidence.features is not None
        assert evidence.reward_history is not None
        potential = log_potentials(evidence.reward_history, self.potential, 1.0)
        promise = _to_unit(potential)
        similarity = 1.0 - _to_unit(distances(evidence.features), lowest=0.0)
        place = np.full(evidence.population, -1)
        chosen = int(promise.argmax())
        nearest = np.zeros(evidence.population)
        for number in range(count):
            place[chosen] = number
            nearest = np.maximum(nearest, similarity[chosen])
            relevance = self.trade_off * promise - (1.0 - self.trade_off) * nearest
            chosen = int(np.where(place < 0, relevance, -np.inf).argmax())
        return Choice(
            ancestor_index=np.flatnonzero(place >= 0), numbers={"potential": potential, "place": place}
        )

    def describe(self) -> str:
        """Return trade-off and potential."""
        return f"trade-off {self.trade_off:g}, potential {self.potential.value}"


def _to_unit(values: Float64Array, lowest: float | None = None) -> Float64Array:
    """Return values scaled to [0, 1]; zeros where all are equal."""
    least = float(values.min()) if lowest is None else lowest
    span = float(values.max()) - least
    return (values - least) / span if span > 0.0 else np.zeros_like(values)
