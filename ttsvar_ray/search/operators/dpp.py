"""Selection by a determinantal point process: the set of trajectories that spans the most.

With S the similarities of the population's images (a Gaussian kernel over their features), the set K of the
wanted size is sought whose determinant det S_K is largest: images that are alike make it small. The best set
    is hard to find; the greedy one adds what raises the determinant most.

Source: L. Chen, G. Zhang and H. Zhou, Fast greedy MAP inference for determinantal point process to improve
recommendation diversity (NeurIPS 2018): the determinant's factors are kept in a Cholesky row a trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsvar_ray.search.operators.distances import gaussian_kernel
from ttsvar_ray.search.operators.options import option
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal

_LEAST = 1e-12
"""What is left of a similarity of 1 where rounding alone is left: such an image coincides with one kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dpp(Operator):
    """Keeps the greedy maximum of the determinant. Alone all images count the same, so that the first one
    kept is the lowest slot; of equal ones further on, the lower slot. Draws nothing.

    Attributes:
        bandwidth: of the kernel, in medians of the distances between images.
    """

    name: ClassVar[str] = "dpp"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.FEATURES})

    bandwidth: float = option(1.0, least=1e-3, advice="1 is the median distance between images")

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        """Keep one after the other; the trace gets as `place` when each was (-1: not)."""
        assert evidence.features is not None
        kernel = gaussian_kernel(evidence.features, self.bandwidth)
        left = kernel.diagonal().copy()
        rows = np.zeros((count, evidence.population))
        place = np.full(evidence.population, -1)
        for number in range(count):
            chosen = int(np.where(place < 0, left, -1.0).argmax())
            place[chosen] = number
            if left[chosen] > _LEAST:
                rows[number] = (kernel[chosen] - rows[:, chosen] @ rows) / np.sqrt(left[chosen])
                left = np.maximum(left - np.square(rows[number]), 0.0)
        return Choice(ancestor_index=np.flatnonzero(place >= 0), numbers={"place": place})

    def describe(self) -> str:
        """Return the bandwidth."""
        return f"bandwidth {self.bandwidth:g}"
