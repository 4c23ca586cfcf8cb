"""Clustering: groups are found, representatives are central, and coinciding images do no harm."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from ttsvar_ray.errors import FeatureError
from ttsvar_ray.search.operators.cluster import cluster_survivors
from ttsvar_ray.search.operators.protocol import Evidence


def test_clear_groups_keep_their_most_central_member() -> None:
    centres = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    offsets = np.array([[1.0, 0.0], [0.1, 0.1], [-1.0, 0.2]])
    features = (centres[:, None] + offsets[None]).reshape(9, 2).astype(np.float32)
    shuffle = np.random.default_rng(3).permutation(9)

    ancestor_index, labels = cluster_survivors(features[shuffle], 3, np.random.default_rng(0))

    central = {1, 4, 7}  # the second member of each group, by its number before the shuffle
    assert {int(shuffle[slot]) for slot in ancestor_index} == central
    groups = shuffle // 3
    assert len({(int(g), int(label)) for g, label in zip(groups, labels, strict=True)}) == 3
    assert labels[ancestor_index].tolist() == [0, 1, 2]
    assert ancestor_index.dtype == labels.dtype == np.int64


def test_of_two_equally_near_members_the_lower_slot_stays() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        pair = generator.normal(size=(2, 256))
        far = generator.normal(size=(1, 256)) + 100.0
        features = np.concatenate([far, pair]).astype(np.float32)
        assert cluster_survivors(features, 2, np.random.default_rng(1))[0].tolist() == [0, 1]


def test_equal_arguments_give_equal_survivors() -> None:
    features = np.random.default_rng(5).normal(size=(16, 64)).astype(np.float32)
    first, second = (cluster_survivors(features, 12, np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.parametrize("factor", [2.0**-60, 2.0**100])
def test_scale_of_the_features_does_not_matter(factor: float) -> None:
    features = np.random.default_rng(6).normal(size=(8, 16)).astype(np.float32)
    plain = cluster_survivors(features, 3, np.random.default_rng(2))[0]
    np.testing.assert_array_equal(
        cluster_survivors(features * np.float32(factor), 3, np.random.default_rng(2))[0], plain
    )


def test_identical_images_leave_the_lowest_slots() -> None:
    ancestor_index, labels = cluster_survivors(np.ones((8, 4), dtype=np.float32), 6, np.random.default_rng(0))
    assert ancestor_index.tolist() == [0, 1, 2, 3, 4, 5]
    assert labels.tolist() == [0] * 8


def test_spare_places_go_to_copies_after_every_distinct_image_is_kept() -> None:
    features = np.array([[0.0], [0.0], [0.0], [5.0], [5.0], [9.0]], dtype=np.float32)
    ancestor_index, labels = cluster_survivors(features, 5, np.random.default_rng(0))
    assert {0, 3, 5} <= set(ancestor_index.tolist())
    assert ancestor_index.tolist() == [0, 1, 2, 3, 5]
    assert labels.tolist() == [0, 0, 0, 1, 1, 2]


def test_features_that_differ_by_a_rounding_error_still_give_distinct_survivors() -> None:
    features = 1.0 + np.arange(8, dtype=np.float64)[:, None] * 1e-16
    features[3:] = np.nextafter(1.0, 2.0)
    features[6:] = np.nextafter(1.0, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ancestor_index, _ = cluster_survivors(features, 2, np.random.default_rng(0))
    assert len(set(ancestor_index.tolist())) == 2


@pytest.mark.parametrize("num_survivors", [1, 4])
def test_extremes(num_survivors: int) -> None:
    features = np.array([[0.0], [1.0], [2.1], [9.0]])
    ancestor_index, labels = cluster_survivors(features, num_survivors, np.random.default_rng(0))
    assert ancestor_index.tolist() == ([2] if num_survivors == 1 else [0, 1, 2, 3])
    assert len(set(labels.tolist())) == num_survivors


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused_by_slot(bad: float) -> None:
    features = np.zeros((4, 3), dtype=np.float32)
    features[2, 1] = bad
    with pytest.raises(FeatureError, match=r"in slots \[2\]"):
        Evidence(population=4, features=features)


def test_zeros_of_either_sign_are_one_point() -> None:
    points = np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]])
    survivors, labels = cluster_survivors(points, 2, np.random.default_rng(0))
    assert survivors.tolist() == [0, 2]
    assert labels.tolist() == [0, 0, 1]
