"""k-means++: as tight as scikit-learn's, decided by points and stream alone, whatever coincides."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ttsvar_ray.search.operators.cluster import k_means


def partition(labels: npt.NDArray[np.integer]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def inertia(points: npt.NDArray[np.float64], labels: npt.NDArray[np.integer]) -> float:
    groups = [points[labels == label] for label in np.unique(labels)]
    return float(sum(np.square(group - group.mean(axis=0)).sum() for group in groups))


def draw_points(seed: int, shape: str, count: int, dim: int = 16) -> npt.NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    if shape == "grid":
        return generator.integers(0, 3, (count, dim)).astype(np.float64)
    points = generator.standard_normal((count, dim))
    if shape == "repeated":
        points[count // 2 :] = points[: count - count // 2]
    elif shape == "shifted":
        points += 100.0
    return points


def test_clear_groups_are_found() -> None:
    centres = 50.0 * np.eye(6, 16)
    points = np.repeat(centres, 3, axis=0) + draw_points(0, "normal", 18)
    labels = k_means(points, 6, np.random.default_rng(1), 10)
    assert partition(labels) == {frozenset(range(3 * i, 3 * i + 3)) for i in range(6)}


@pytest.mark.parametrize("shape", ["normal", "grid", "repeated", "shifted"])
@pytest.mark.parametrize(("population", "num_clusters"), [(4, 1), (6, 4), (8, 6), (16, 12), (24, 5)])
def test_every_point_is_in_its_nearest_cluster(shape: str, population: int, num_clusters: int) -> None:
    for seed in range(10):
        points = draw_points(seed, shape, population)
        if len(np.unique(points, axis=0)) <= num_clusters:
            continue
        labels = k_means(points, num_clusters, np.random.default_rng(seed), 3)
        assert labels.shape == (population,)
        assert len(partition(labels)) == num_clusters
        centres = np.stack([points[labels == label].mean(axis=0) for label in range(num_clusters)])
        squares = np.square(points[:, None] - centres).sum(axis=2)
        own = squares[np.arange(population), labels]
        assert (own <= squares.min(axis=1) + 1e-9 * np.square(points).sum(axis=1).max()).all()


@pytest.mark.parametrize(("population", "num_clusters"), [(6, 4), (8, 6), (16, 12)])
def test_clusters_are_as_tight_as_those_of_many_more_restarts(population: int, num_clusters: int) -> None:
    found, best = 0.0, 0.0
    for seed in range(30):
        points = draw_points(seed, "normal", population, dim=256)
        found += inertia(points, k_means(points, num_clusters, np.random.default_rng(seed), 10))
        best += inertia(points, k_means(points, num_clusters, np.random.default_rng(seed), 300))
    assert best <= found <= 1.02 * best


@pytest.mark.parametrize(("population", "num_clusters"), [(6, 4), (8, 6), (16, 12)])
def test_clusters_are_as_tight_as_those_of_scikit_learn(population: int, num_clusters: int) -> None:
    # Every process of the tests reads this file, and one runs it.
    from sklearn.cluster import KMeans

    found, reference = 0.0, 0.0
    for seed in range(15):
        points = draw_points(seed, "normal", population, dim=256)
        found += inertia(points, k_means(points, num_clusters, np.random.default_rng(seed), 10))
        reference += KMeans(num_clusters, n_init=10, random_state=seed).fit(points).inertia_
    assert found <= 1.01 * reference


def test_rounding_decides_nothing() -> None:
    square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    for seed in range(20):
        expected = k_means(square, 2, np.random.default_rng(seed), 10)
        for nudge in (1e-15, -1e-15):
            nudged = square + nudge * np.arange(8).reshape(4, 2)
            np.testing.assert_array_equal(k_means(nudged, 2, np.random.default_rng(seed), 10), expected)


def test_the_stream_decides_where_restarts_begin() -> None:
    points = draw_points(3, "normal", 32)
    once = {k_means(points, 8, np.random.default_rng(seed), 1).tobytes() for seed in range(8)}
    assert len(once) > 1
    again = [k_means(points, 8, np.random.default_rng(5), 10) for _ in range(2)]
    np.testing.assert_array_equal(*again)
