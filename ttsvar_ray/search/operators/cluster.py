"""Clustering-based diversity search: keep one trajectory of each group of similar images.

Source: TTS-VAR (arXiv 2507.18537) section 3, clustering-based diversity search: k-means++ over
features of the intermediate images, and from each cluster the sample with the shortest L2 distance
to its centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ttsvar_ray.search.k_means import k_means
from ttsvar_ray.search.operators.options import option
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal
from ttsvar_ray.types import Float64Array, Int64Array

_TIE = 1e-9
"""Relative difference of squared distances below which two trajectories are equally near: both
members of a pair are equally far from their mean, and rounding must not choose between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster(Operator):
    """Keeps the most central member of each of as many clusters as there are survivors.

    Attributes:
        restarts: k-means runs, of which the tightest counts.
    """

    name: ClassVar[str] = "cluster"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.FEATURES})

    restarts: int = option(10, least=1)

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        """Cluster the features; the trace gets each trajectory's cluster as `labels`."""
        assert evidence.features is not None
        ancestor_index, labels = cluster_survivors(evidence.features, count, rng, self.restarts)
        return Choice(ancestor_index=ancestor_index, numbers={"labels": labels})

    def describe(self) -> str:
        """Return how often k-means starts."""
        return f"best of {self.restarts} k-means"


def cluster_survivors(
    features: npt.NDArray[np.floating],
    num_survivors: int,
    rng: np.random.Generator,
    restarts: int = 10,
) -> tuple[Int64Array, Int64Array]:
    """Return one representative of each of num_survivors clusters.

    The representative is the member nearest to the cluster's mean; of equally near ones, the lowest
    slot. Where there are fewer clusters than survivors, because images coincide, the remaining places
    go one by one to the trajectory farthest from all those kept (the lowest slot among equals): the
    survivors are always num_survivors distinct slots.

    Args:
        features: [population, feature_dim], finite.
        num_survivors: from 1 to the population (then all survive, each its own cluster).
        rng: the named stream of this selection.
        restarts: k-means runs, of which the tightest counts.

    Returns:
        ancestor_index: int64 [num_survivors] distinct slots, ascending.
        labels: int64 [population] cluster of each trajectory; clusters are numbered by ascending
            representative.

    Differs: the published code leaves the number of k-means runs to the scikit-learn version (10 or 1), fixes
        the seed at 0 for all prompts, orders survivors by cluster number, and stops with an error on
        coinciding images.
    """
    points = _normalised(features)
    population = len(points)
    assert 1 <= num_survivors <= population, f"{num_survivors} survivors of {population}"
    distinct, group = np.unique(points, axis=0, return_inverse=True)
    if len(distinct) <= num_survivors:
        labels = group.reshape(-1).astype(np.int64)
    else:
        labels = k_means(points, num_survivors, rng, restarts)
    clusters = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    representatives = {_nearest_to_mean(points, members): members for members in clusters}
    numbered = np.empty(population, dtype=np.int64)
    for number, representative in enumerate(sorted(representatives)):
        numbered[representatives[representative]] = number
    kept = _fill_with_farthest(points, sorted(representatives), num_survivors)
    return np.array(sorted(kept), dtype=np.int64), numbered


def _normalised(features: npt.NDArray[np.floating]) -> Float64Array:
    """Return float64 points scaled to at most 1: clusters are the same, and squares cannot overflow."""
    points = np.asarray(features, dtype=np.float64)
    assert points.ndim == 2, f"expected [population, feature_dim], got {points.shape}"
    assert points.size, "expected at least one trajectory and one feature"
    largest = np.abs(points).max()
    return points / largest if largest > 0.0 else points


def _nearest_to_mean(points: Float64Array, members: Int64Array) -> int:
    distances = np.square(points[members] - points[members].mean(axis=0)).sum(axis=1)
    return int(members[np.flatnonzero(distances <= distances.min() * (1.0 + _TIE) + _TIE**2)[0]])


def _fill_with_farthest(points: Float64Array, kept: list[int], num_survivors: int) -> list[int]:
    kept = list(kept)
    while len(kept) < num_survivors:
        gaps = np.square(points[:, None, :] - points[None, kept, :]).sum(axis=2).min(axis=1)
        gaps[kept] = -1.0
        kept.append(int(np.flatnonzero(gaps >= gaps.max() * (1.0 - _TIE))[0]))
    return kept
