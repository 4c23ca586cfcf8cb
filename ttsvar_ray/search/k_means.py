"""k-means++ of one small population: scikit-learn's answer in a tenth of its time.

A population has some ten points, and `sklearn.cluster.KMeans` spends milliseconds around microseconds of
arithmetic; a coordinator clusters twice a prompt and does little else. Here all restarts run at once, on the
inner products of the points: means, distances and inertias are linear in them, so that the length of a
feature vector no longer counts.

The draws are scikit-learn's, number for number, and so are the rules: greedy k-means++ with 2 + log(k)
trials, Lloyd's iteration with its two ends, the best of the restarts by inertia. What can differ is rounding.
So wherever a decision is closer than rounding could be, nothing is decided here: the caller is told, and
asks scikit-learn itself.

Source: Arthur and Vassilvitskii, k-means++: the advantages of careful seeding (2007); scikit-learn 1.8,
`KMeans(init="k-means++", algorithm="lloyd")`, whose results it returns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ttsvar_ray.types import Float64Array, Int64Array

MAX_ITERATIONS = 300
TOLERANCE = 1e-4
_CLOSE = 1e-9
"""Part of the largest squared norm below which a difference may be rounding: a million times what it is."""


def fast_labels(points: Float64Array, num_clusters: int, seed: int, restarts: int) -> Int64Array | None:
    """Return the cluster of each point, or None where rounding could decide.

    Args:
        points: [n, dim], more distinct ones than clusters.
        num_clusters: at least 1.
        seed: of `numpy.random.RandomState`, as scikit-learn's `random_state`.
        restarts: scikit-learn's `n_init`.

    Returns:
        int64 [n]; clusters are numbered as it happens.
    """
    centred = points - points.mean(axis=0)
    products = centred @ centred.T
    close = _CLOSE * float(products.diagonal().max())
    chosen = _seed_centres(centred, num_clusters, seed, restarts)
    tolerance = TOLERANCE * float(np.var(points, axis=0).mean())
    runs = _lloyd(products, chosen, tolerance, close)
    if runs is None:
        return None
    return _best(*runs, close)


def _seed_centres(centred: Float64Array, num_clusters: int, seed: int, restarts: int) -> Int64Array:
    """Return int64 [restarts, num_clusters]: the points that each restart begins with.

    Two candidates that leave the same potential are common (a close pair, of which one must be taken), and
    then rounding decides: so every sum here is made of the same operations on the same shapes as in
    scikit-learn, slice by slice.
    """
    count = len(centred)
    trials = 2 + int(np.log(num_clusters))
    per_restart = 1 + (num_clusters - 1) * trials
    generator = np.random.RandomState(seed)
    draws = generator.random_sample(restarts * per_restart).reshape(restarts, per_restart)
    weights = np.ones(count)
    transposed = centred.T
    norms = np.einsum("ij,ij->i", centred, centred)

    def squares(chosen: Int64Array) -> Float64Array:
        """Return float64 [restarts, chosen, n]."""
        distances: Float64Array = -2 * (centred[chosen] @ transposed)
        distances += norms[chosen][:, :, None]
        distances += norms
        np.maximum(distances, 0, out=distances)
        return distances

    chosen = np.empty((restarts, num_clusters), dtype=np.int64)
    cumulated = (weights / weights.sum()).cumsum()
    cumulated /= cumulated[-1]
    chosen[:, 0] = cumulated.searchsorted(draws[:, 0], side="right")
    nearest = squares(chosen[:, :1])
    potential = nearest @ weights
    rows = np.arange(restarts)
    for index in range(1, num_clusters):
        begin = 1 + (index - 1) * trials
        drawn = draws[:, begin : begin + trials] * potential
        sums = np.cumsum(weights * nearest, axis=2)
        candidates = np.minimum((sums < drawn[:, :, None]).sum(axis=2), count - 1)
        left = squares(candidates)
        np.minimum(nearest, left, out=left)
        potentials = left @ weights.reshape(-1, 1)
        best = potentials[:, :, 0].argmin(axis=1)
        chosen[:, index] = candidates[rows, best]
        potential = potentials[rows, best]
        nearest = left[rows, best][:, None, :]
    return chosen


def _lloyd(
    products: Float64Array, chosen: Int64Array, tolerance: float, close: float
) -> tuple[Int64Array, Float64Array] | None:
    """Return int64 [restarts, n] labels and float64 [restarts] inertias."""
    restarts, num_clusters = chosen.shape
    count = len(products)
    norms = products.diagonal()
    identity = np.eye(num_clusters)
    # Each centre as the weights of the points that it is the mean of: [restarts, clusters, n].
    centres = np.zeros((restarts, num_clusters, count))
    np.put_along_axis(centres, chosen[:, :, None], 1.0, axis=2)
    labels = np.full((restarts, count), -1)
    inertias = np.zeros(restarts)
    active = np.arange(restarts)
    for _ in range(MAX_ITERATIONS):
        now = centres[active]
        squares = _squares(now, products, norms)
        if _is_close(squares, close):
            return None
        found = squares.argmin(axis=1)
        members = identity[found].transpose(0, 2, 1)
        sizes = members.sum(axis=2, keepdims=True)
        if not sizes.all():
            return None
        means = members / sizes
        step = means - now
        shift = ((step @ products) * step).sum(axis=(1, 2))
        is_strict = (found == labels[active]).all(axis=1)
        if (np.abs(shift - tolerance) <= min(close, tolerance * 1e-3))[~is_strict].any():
            return None
        is_over = is_strict | (shift <= tolerance)
        centres[active] = means
        labels[active] = found
        if is_over.any():
            ended = means[is_over]
            squares = _squares(ended, products, norms)
            found = found[is_over]
            moved_on = ~is_strict[is_over]
            if moved_on.any():
                if _is_close(squares[moved_on], close):
                    return None
                found[moved_on] = squares[moved_on].argmin(axis=1)
            labels[active[is_over]] = found
            inertias[active[is_over]] = np.take_along_axis(squares, found[:, None, :], axis=1).sum(
                axis=(1, 2)
            )
            active = active[~is_over]
            if not len(active):
                return labels, inertias
    return None


def _squares(centres: Float64Array, products: Float64Array, norms: Float64Array) -> Float64Array:
    """Return float64 [restarts, clusters, n]: squared distances of points to centres."""
    inner = centres @ products
    own = (inner * centres).sum(axis=2, keepdims=True)
    squares: Float64Array = norms - 2.0 * inner + own
    return squares


def _is_close(squares: Float64Array, close: float) -> bool:
    """Return whether a point is about as near to a second centre as to its own."""
    if squares.shape[1] == 1:
        return False
    two = np.partition(squares, 1, axis=1)
    return bool((two[:, 1] - two[:, 0]).min() <= close)


def _best(labels: Int64Array, inertias: Float64Array, close: float) -> Int64Array | None:
    """Return the tightest clustering, or None where a different one is about as tight."""
    best = int(inertias.argmin())
    for rival in np.flatnonzero(inertias <= inertias[best] + close):
        if rival != best and not _is_same(labels[best], labels[rival]):
            return None
    tightest: Int64Array = labels[best].astype(np.int64)
    return tightest


def _is_same(first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]) -> bool:
    """Return whether two clusterings differ in the numbers of their clusters only."""
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
