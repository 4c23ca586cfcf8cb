"""Clustering-based diversity search: keep one trajectory of each group of similar images.

Source: TTS-VAR (arXiv 2507.18537) section 3, clustering-based diversity search: k-means++ over
features of the intermediate images, and from each cluster the sample with the shortest L2 distance
to its centre.

A coordinator clusters twice a prompt and does little else. So k-means runs all its restarts at once, and
everything is computed from the inner products of the points: means, distances and inertias are linear in
them, and the length of a feature vector no longer counts. What differs by rounding alone counts as equal, and
the first of equals is taken: clusters do not depend on the order in which a library adds.

Source of k-means++: D. Arthur and S. Vassilvitskii, k-means++: the advantages of careful seeding (2007), with
the greedy choice among 2 + log(k) candidates of its section on experiments; S. Lloyd, Least squares
quantization in PCM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

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


MAX_ITERATIONS = 300
_CLOSE = 1e-10
"""Part of the largest squared norm below which a difference may be rounding."""


def k_means(points: Float64Array, num_clusters: int, rng: np.random.Generator, restarts: int) -> Int64Array:
    """Return the cluster of each point in the tightest of several clusterings.

    Args:
        points: [n, dim], at least one of them distinct for each cluster.
        num_clusters: at least 1.
        rng: decides where each restart begins.
        restarts: how many are tried, at least 1.

    Returns:
        int64 [n]; clusters are numbered as it happens, and one may be empty where points all but coincide.
    """
    centred = points - points.mean(axis=0)
    products = centred @ centred.T
    norms = products.diagonal()
    close = _CLOSE * float(norms.max())
    squares = np.maximum(norms[:, None] + norms - 2.0 * products, 0.0)
    uniforms = rng.random((restarts, num_clusters, 2 + int(np.log(num_clusters))))
    first = _seeds(squares, uniforms, close)
    # Each centre as the weights of the points that it is the mean of: [restarts, clusters, n].
    centres = np.eye(len(points))[first]
    labels = np.full((restarts, len(points)), -1)
    for _ in range(MAX_ITERATIONS):
        inner = centres @ products
        distances = norms - 2.0 * inner + (inner * centres).sum(axis=2, keepdims=True)
        found = _first_least(distances, axis=1, close=close)
        if (found == labels).all():
            break
        labels = found
        members = np.eye(num_clusters)[labels].transpose(0, 2, 1)
        centres = members / np.maximum(members.sum(axis=2, keepdims=True), 1.0)
    inertias = np.take_along_axis(distances, labels[:, None], axis=1).sum(axis=(1, 2))
    best = _first_least(inertias, axis=0, close=close * len(points))
    return labels[best].astype(np.int64)


def _seeds(squares: Float64Array, uniforms: Float64Array, close: float) -> Int64Array:
    """Return int64 [restarts, clusters]: the points that each restart begins with.

    Each next point is drawn with the square of its distance to those before it; of a few so drawn, the one
    that leaves the least.

    Args:
        squares: [n, n] squared distances.
        uniforms: [restarts, clusters, candidates] in [0, 1).
    """
    count, rows = len(squares), np.arange(len(uniforms))
    chosen = np.empty(uniforms.shape[:2], dtype=np.int64)
    chosen[:, 0] = uniforms[:, 0, 0] * count
    nearest = squares[chosen[:, 0]]
    for index in range(1, uniforms.shape[1]):
        cumulated = nearest.cumsum(axis=1)
        drawn = uniforms[:, index] * cumulated[:, -1:]
        candidates = (cumulated[:, None, :] <= drawn[:, :, None]).sum(axis=2).clip(max=count - 1)
        left = np.minimum(nearest[:, None, :], squares[candidates])
        best = _first_least(left.sum(axis=2), axis=1, close=close * count)
        chosen[:, index] = candidates[rows, best]
        nearest = left[rows, best]
    return chosen


def _first_least(values: Float64Array, *, axis: int, close: float) -> Int64Array:
    """Return the index of the first value along an axis that is as small as the smallest, up to rounding."""
    first: Int64Array = (values <= values.min(axis=axis, keepdims=True) + close).argmax(axis=axis)
    return first
