"""Density in feature space: keep what the model draws most often, and explore with the rest.

The density of a trajectory is the mean of a Gaussian kernel over the others of its population. Many similar
images mean that the model is sure of them; no reward is needed.

Source: VAR-Scaling (arXiv 2601.07293): kernel density estimation over early states, the densest samples kept,
and some at random beside them, against premature convergence.
Differs: it reads the features of decoded images, as every operator here, and estimates the density among the
prompt's own trajectories, a few, where the paper draws thousands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsvar_ray.search.operators.distances import gaussian_kernel
from ttsvar_ray.search.operators.options import option
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Density(Operator):
    """Keeps the trajectories of the highest density, of equal ones the lower slots; and some of the others at
    random, each once.

    Attributes:
        random_share: of the survivors, rounded down, those that are drawn.
        bandwidth: of the kernel, in medians of the distances between images.
    """

    name: ClassVar[str] = "density"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.FEATURES})

    random_share: float = option(0.0, least=0, most=1, advice="0 keeps the densest alone")
    bandwidth: float = option(1.0, least=1e-3, advice="1 is the median distance between images")

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        """Keep the densest; the trace gets each trajectory's `density`, 0 to 1."""
        assert evidence.features is not None
        kernel = gaussian_kernel(evidence.features, self.bandwidth)
        others = max(evidence.population - 1, 1)
        density = (kernel.sum(axis=1) - kernel.diagonal()) / others
        order = np.argsort(-density, kind="stable")
        densest = count - int(self.random_share * count)
        drawn = rng.choice(order[densest:], size=count - densest, replace=False)
        return Choice(ancestor_index=np.concatenate([order[:densest], drawn]), numbers={"density": density})

    def describe(self) -> str:
        """Return what is drawn, and the bandwidth."""
        return f"{self.random_share:.0%} at random, bandwidth {self.bandwidth:g}"
