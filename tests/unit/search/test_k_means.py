"""The fast k-means++ gives scikit-learn's clusters, or says that rounding decides."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from ttsvar_ray.search.clustering import cluster_survivors
from ttsvar_ray.search.k_means import fast_labels

SHAPES = ("normal", "rounded", "repeated", "shifted", "scaled", "grid")


def reference(
    points: npt.NDArray[np.float64], num_clusters: int, seed: int, restarts: int
) -> npt.NDArray[np.integer]:
    k_means = KMeans(num_clusters, init="k-means++", n_init=restarts, random_state=seed, algorithm="lloyd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(k_means.fit_predict(points))


def partition(labels: npt.NDArray[np.integer]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def draw_points(generator: np.random.Generator, shape: str, count: int, dim: int) -> npt.NDArray[np.float64]:
    points = generator.standard_normal((count, dim)).astype(np.float32).astype(np.float64)
    if shape == "rounded":
        points = np.round(points)
    elif shape == "repeated":
        points[count // 2 :] = points[: count - count // 2]
    elif shape == "shifted":
        points += 100.0
    elif shape == "scaled":
        points *= np.exp(3.0 * generator.standard_normal((count, 1)))
    elif shape == "grid":
        points = generator.integers(0, 3, (count, dim)).astype(np.float64)
    return points / max(1e-9, float(np.abs(points).max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_clusters_are_those_of_scikit_learn(shape: str) -> None:
    generator = np.random.default_rng(SHAPES.index(shape))
    decided = 0
    asked = 0
    for seed in range(150):
        count = int(generator.integers(2, 25))
        num_clusters = int(generator.integers(1, count))
        restarts = int(generator.choice([1, 3, 10]))
        points = draw_points(generator, shape, count, int(generator.choice([1, 2, 16, 256])))
        if len(np.unique(points, axis=0)) <= num_clusters:
            continue
        asked += 1
        found = fast_labels(points, num_clusters, seed, restarts)
        if found is not None:
            decided += 1
            expected = reference(points, num_clusters, seed, restarts)
            assert partition(found) == partition(expected), f"seed {seed}"
    assert asked > 50
    # Coordinates on a grid tie all the time; others hardly ever.
    assert decided > (0.9 if shape in ("normal", "repeated", "shifted") else 0.3) * asked


@pytest.mark.parametrize(("population", "num_survivors"), [(8, 6), (6, 4), (64, 48)])
def test_the_published_populations_are_decided_here(population: int, num_survivors: int) -> None:
    generator = np.random.default_rng(7)
    for seed in range(20):
        points = generator.standard_normal((population, 256))
        found = fast_labels(points, num_survivors, seed, 10)
        assert found is not None
        assert partition(found) == partition(reference(points, num_survivors, seed, 10))


def test_a_tie_is_left_to_scikit_learn() -> None:
    square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert fast_labels(square, 2, 0, 10) is None
    survivors, labels = cluster_survivors(square, 2, 0)
    assert len(survivors) == 2
    assert partition(labels) == partition(reference(square, 2, 0, 10))


def test_zeros_of_either_sign_are_one_point() -> None:
    points = np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]])
    survivors, labels = cluster_survivors(points, 2, 0)
    assert survivors.tolist() == [0, 2]
    assert labels.tolist() == [0, 0, 1]
