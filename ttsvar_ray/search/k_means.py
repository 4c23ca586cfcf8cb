"""k-means++ of one small population, all its restarts at once.

A coordinator clusters twice a prompt and does little else. So everything is computed from the inner products
of the points: means, distances and inertias are linear in them, and the length of a feature vector no longer
counts. What differs by rounding alone counts as equal, and the first of equals is taken: clusters do not
depend on the order in which a library adds.

Source: D. Arthur and S. Vassilvitskii, k-means++: the advantages of careful seeding (2007), with the greedy
choice among 2 + log(k) candidates of its section on experiments; S. Lloyd, Least squares quantization in PCM.
"""

from __future__ import annotations

import numpy as np

from ttsvar_ray.types import Float64Array, Int64Array

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
