"""Clustering-based diversity search: keep one trajectory of each group of similar images.

Source: TTS-VAR (arXiv 2507.18537) section 3, clustering-based diversity search: k-means++ over
features of the intermediate images, and from each cluster the sample with the shortest L2 distance
to its centre.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from ttsvar_ray.errors import FeatureError
from ttsvar_ray.search.k_means import fast_labels
from ttsvar_ray.types import Float64Array, Int64Array

_TIE = 1e-9
"""Relative difference of squared distances below which two trajectories are equally near: both
members of a pair are equally far from their mean, and rounding must not choose between them."""


def cluster_survivors(
    features: npt.NDArray[np.floating],
    num_survivors: int,
    seed: int,
    restarts: int = 10,
) -> tuple[Int64Array, Int64Array]:
    """Return one representative of each of num_survivors clusters.

    The representative is the member nearest to the cluster's mean; of equally near ones, the lowest
    slot. Where there are fewer clusters than survivors, because images coincide, the remaining places
    go one by one to the trajectory farthest from all those kept (the lowest slot among equals): the
    survivors are always num_survivors distinct slots.

    Args:
        features: [population, feature_dim].
        num_survivors: from 1 to the population (then all survive, each its own cluster).
        seed: 31-bit seed of k-means++, from the named stream of this selection.
        restarts: k-means runs, of which the tightest counts (scikit-learn's n_init).

    Returns:
        ancestor_index: int64 [num_survivors] distinct slots, ascending.
        labels: int64 [population] cluster of each trajectory; clusters are numbered by ascending
            representative.

    Raises:
        FeatureError: a feature is NaN or infinite.

    Differs: the published code leaves n_init to the scikit-learn version (10 or 1), fixes the seed at 0
        for all prompts, orders survivors by cluster number, and stops with an error on coinciding images.
    """
    points = _normalised(features)
    population = len(points)
    assert 1 <= num_survivors <= population, f"{num_survivors} survivors of {population}"
    labels = _cluster(points, num_survivors, seed, restarts)
    clusters = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    representatives = {_nearest_to_mean(points, members): members for members in clusters}
    numbered = np.empty(population, dtype=np.int64)
    for number, representative in enumerate(sorted(representatives)):
        numbered[representatives[representative]] = number
    kept = _fill_with_farthest(points, sorted(representatives), num_survivors)
    return np.array(sorted(kept), dtype=np.int64), numbered


def refuse_not_finite(features: npt.NDArray[np.floating]) -> None:
    """Raise FeatureError if any slot of [population, ...] holds NaN or infinity."""
    finite = np.isfinite(features).reshape(len(features), -1).all(axis=1)
    if not finite.all():
        raise FeatureError(
            f"features: expected finite numbers, got NaN or infinity in slots "
            f"{np.flatnonzero(~finite).tolist()}; check the feature extractor and its dtype."
        )


def _normalised(features: npt.NDArray[np.floating]) -> Float64Array:
    """Return float64 points scaled to at most 1: clusters are the same, and squares cannot overflow."""
    points = np.asarray(features, dtype=np.float64)
    assert points.ndim == 2, f"expected [population, feature_dim], got {points.shape}"
    assert points.size, "expected at least one trajectory and one feature"
    refuse_not_finite(points)
    largest = np.abs(points).max()
    return points / largest if largest > 0.0 else points


def _cluster(points: Float64Array, num_clusters: int, seed: int, restarts: int) -> Int64Array:
    # Adding zero makes one zero of two: equal points have equal bytes.
    if len({point.tobytes() for point in points + 0.0}) < len(points):
        distinct, group = np.unique(points, axis=0, return_inverse=True)
        if len(distinct) <= num_clusters:
            return group.reshape(-1).astype(np.int64)
    elif len(points) <= num_clusters:
        return np.arange(len(points), dtype=np.int64)
    labels = fast_labels(points, num_clusters, seed, restarts)
    return labels if labels is not None else _cluster_slowly(points, num_clusters, seed, restarts)


def _cluster_slowly(points: Float64Array, num_clusters: int, seed: int, restarts: int) -> Int64Array:
    """Let scikit-learn decide, where rounding does."""
    k_means = KMeans(
        num_clusters,
        init="k-means++",
        n_init=restarts,
        random_state=seed,
        algorithm="lloyd",
    )
    with warnings.catch_warnings():
        # points a rounding error apart may leave a cluster empty; the fill rule deals with it
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(k_means.fit_predict(points), dtype=np.int64)


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
