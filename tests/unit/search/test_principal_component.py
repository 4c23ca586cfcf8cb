"""The joint principal component: one direction for a whole population, found by its selection."""

from __future__ import annotations

import numpy as np
import pytest

from ttsvar_ray.errors import FeatureError
from ttsvar_ray.search.operators.cluster import cluster_survivors
from ttsvar_ray.search.operators.protocol import Choice
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.principal_component import ComponentSign, first_component, first_component_of_all
from ttsvar_ray.search.selection import select
from ttsvar_ray.search.strategy import compile_plan

SCHEDULE = tuple((side, side) for side in range(1, 14))


def patches(population: int = 8) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(population, 20, 12)).astype(np.float32)


def plan(sign: ComponentSign | None = ComponentSign.DETERMINISTIC) -> Plan:
    return compile_plan(scale_schedule=SCHEDULE, joint_component=sign)


def choose(features: np.ndarray, of: Plan) -> Choice:
    return select(
        of,
        of.selections[0],
        features=features,
        reward_history=np.empty((len(features), 0)),
        run_seed=3,
        prompt_key="a#0",
    )


@pytest.mark.parametrize("sign", list(ComponentSign))
def test_the_selection_clusters_along_one_direction_of_all_patches(sign: ComponentSign) -> None:
    features = patches()
    flat = features.reshape(-1, 12).astype(np.float64)
    centred = flat - flat.mean(axis=0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    along = (centred @ direction).reshape(8, 20)
    got = first_component_of_all(features, sign)
    turned = got * np.sign((got * along).sum())
    np.testing.assert_allclose(turned, along, atol=1e-5)

    joint = choose(features, plan(sign))
    reduced = choose(got, plan(None))
    np.testing.assert_array_equal(joint.ancestor_index, reduced.ancestor_index)
    np.testing.assert_array_equal(joint.numbers["labels"], reduced.numbers["labels"])


def test_the_joint_direction_is_not_each_images_own() -> None:
    features = patches()
    own = first_component(features, ComponentSign.DETERMINISTIC)
    joint = first_component_of_all(features, ComponentSign.DETERMINISTIC)
    cosine = (own * joint).sum(axis=1) / np.linalg.norm(own, axis=1) / np.linalg.norm(joint, axis=1)
    assert np.abs(cosine).max() < 0.99


def test_a_rounding_error_in_one_image_leaves_the_sign_alone() -> None:
    features = patches()
    before = first_component_of_all(features, ComponentSign.DETERMINISTIC)
    nudged = features.copy()
    nudged[5] *= np.float32(1 + 1e-6)
    after = first_component_of_all(nudged, ComponentSign.DETERMINISTIC)
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_identical_images_get_identical_features_and_distinct_slots() -> None:
    features = np.repeat(patches(1), 8, axis=0)
    joint = first_component_of_all(features, ComponentSign.DETERMINISTIC)
    assert (joint == joint[0]).all()
    survivors = cluster_survivors(joint, 6, np.random.default_rng(0))[0]
    assert survivors.tolist() == [0, 1, 2, 3, 4, 5]
    outcome = choose(features, plan())
    assert outcome.ancestor_index.tolist() == [0, 1, 2, 3, 4, 5]


def test_patches_that_are_not_finite_are_refused_by_slot() -> None:
    features = patches()
    features[3, 7, 2] = np.nan
    with pytest.raises(FeatureError, match=r"in slots \[3\]"):
        choose(features, plan())


def test_a_plan_that_reads_no_features_reduces_nothing() -> None:
    assert compile_plan(scale_schedule=SCHEDULE, strategy="raw", joint_component=None).joint_component is None
    resampling = compile_plan(
        scale_schedule=SCHEDULE, strategy="resampling", n=4, joint_component=ComponentSign.PUBLISHED
    )
    assert resampling.joint_component is None
