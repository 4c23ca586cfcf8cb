"""Operators: what each reads, whom it keeps, what it writes down."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.plans import SEVEN_SCALES, chosen, plan_with
from ttsvar_ray.errors import ConfigurationError, SelectionError
from ttsvar_ray.search.describe import selector_demand
from ttsvar_ray.search.operators.distances import gaussian_kernel
from ttsvar_ray.search.operators.options import make_operator
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.operators.registry import OPERATORS
from ttsvar_ray.search.operators.resample import Resample
from ttsvar_ray.search.selection import select
from ttsvar_ray.search.strategy import SelectionSetting, compile_plan
from ttsvar_ray.types import PotentialKind

RNG = np.random.default_rng(0)


def test_keep_keeps_everybody_and_has_them_scored() -> None:
    settings = [SelectionSetting(scale=3, operator="keep")]
    plan = compile_plan(scale_schedule=SEVEN_SCALES, batch_schedule=[4] * 7, selections=settings)
    choice = chosen(plan, [0.5, 2.0, 0.5, -1.0])
    assert choice.ancestor_index.tolist() == [0, 1, 2, 3]
    assert selector_demand(plan).scores == 8
    with pytest.raises(ConfigurationError, match=r"batch_schedule\[3\]: expected 4 \(keep at scale 3 drops"):
        compile_plan(scale_schedule=SEVEN_SCALES, batch_schedule=[4, 4, 4, 2, 2, 2, 2], selections=settings)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "keep"])
def test_every_operator_keeps_its_contract(name: str) -> None:
    plan = plan_with(name)
    operator = plan.selections[0].operator
    assert operator.name == name
    assert hash(operator) == hash(make_operator(type(operator), {}, setting="here"))
    generator = np.random.default_rng(1)
    features = generator.normal(size=(6, 4)).astype(np.float32)
    rewards = generator.normal(size=6).tolist()
    first, second = (chosen(plan, rewards, features) for _ in range(2))
    np.testing.assert_array_equal(first.ancestor_index, second.ancestor_index)
    assert first.ancestor_index.shape == (3,)
    assert operator.repeats or len(set(first.ancestor_index.tolist())) == 3
    demand = selector_demand(plan)
    assert (demand.embeddings > 0) == (Signal.FEATURES in operator.reads)
    assert (demand.scores > 3) == (Signal.REWARDS in operator.reads)


def test_top_k_keeps_the_best_and_of_equals_the_lower_slots() -> None:
    choice = chosen(plan_with("top-k"), [0.5, 2.0, 0.5, -1.0, 2.0, 0.5])
    assert choice.ancestor_index.tolist() == [0, 1, 4]
    assert np.asarray(choice.numbers["potential"]).tolist() == [0.5, 2.0, 0.5, -1.0, 2.0, 0.5]


def test_top_k_reads_what_its_potential_reads() -> None:
    assert plan_with("top-k").scored_scales == (3, 6)
    assert plan_with("top-k", potential="diff").scored_scales == (2, 3, 6)
    assert plan_with("top-k", potential="sum").scored_scales == (0, 1, 2, 3, 6)


def test_operators_of_one_plan_see_their_own_columns() -> None:
    plan = compile_plan(
        scale_schedule=SEVEN_SCALES,
        batch_schedule=(4, 4, 2, 2, 1, 1, 1),
        selections=[
            SelectionSetting(scale=2, operator="top-k", options={"potential": "sum"}),
            SelectionSetting(scale=4, operator="top-k", options={"potential": "diff"}),
        ],
    )
    assert plan.scored_scales == (0, 1, 2, 3, 4, 6)
    history = np.array([[9.0, 9.0, 9.0, 9.0, 8.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    choice = select(
        plan, plan.selections[1], features=None, reward_history=history, run_seed=0, prompt_key="a#0"
    )
    assert np.asarray(choice.numbers["potential"]).tolist() == [-1.0, 1.0]
    assert choice.ancestor_index.tolist() == [1]


TWINS = np.array([[0.0, 0.0], [0.0, 0.1], [9.0, 0.0], [9.0, 0.1], [0.0, 9.0], [0.0, 9.1]])
REWARDS = [5.0, 4.9, 4.0, 3.9, 3.0, 2.9]


@pytest.mark.parametrize(("trade_off", "kept"), [(1.0, [0, 1, 2]), (0.3, [0, 2, 4]), (0.0, [0, 3, 5])])
def test_diverse_top_k_trades_promise_for_difference(trade_off: float, kept: list[int]) -> None:
    choice = chosen(plan_with("diverse-top-k", trade_off=trade_off), REWARDS, TWINS)
    assert choice.ancestor_index.tolist() == kept
    place = np.asarray(choice.numbers["place"])
    assert sorted(place[kept].tolist()) == [0, 1, 2]
    assert (place >= 0).sum() == 3
    assert place[0] == 0, "the most promising one is kept first"


@pytest.mark.parametrize(("factor", "shift"), [(1e-6, 0.0), (1e6, 3.0)])
def test_diverse_top_k_does_not_depend_on_units(factor: float, shift: float) -> None:
    plan = plan_with("diverse-top-k", trade_off=0.4)
    expected = chosen(plan, REWARDS, TWINS).ancestor_index
    scaled = chosen(plan, [factor * reward + shift for reward in REWARDS], TWINS * factor)
    np.testing.assert_array_equal(scaled.ancestor_index, expected)


def test_diverse_top_k_of_what_is_all_alike_keeps_the_lowest_slots() -> None:
    choice = chosen(plan_with("diverse-top-k"), [1.0] * 6, np.ones((6, 2)))
    assert choice.ancestor_index.tolist() == [0, 1, 2]


def test_likelihood_keeps_the_surest_without_a_decode() -> None:
    plan = plan_with("likelihood")
    assert plan.needs_likelihood
    assert selector_demand(plan).decodes == 3, "the final images alone"
    choice = chosen(plan, [0.5, 2.0, 0.5, -1.0, 2.0, 0.5])
    assert choice.ancestor_index.tolist() == [0, 1, 4]
    assert np.asarray(choice.numbers["log_likelihood"])[3] == -101.0
    assert not plan_with("top-k").needs_likelihood
    bad = [0.0, float("nan"), 0.0, 0.0, 0.0, 0.0]
    with pytest.raises(SelectionError, match=r"log_likelihood: expected finite numbers, .* slots \[1\]"):
        chosen(plan, bad)


LINE = np.array([[0.0], [1.0], [2.0], [2.0], [9.0], [10.0]])


def test_farthest_point_begins_in_the_middle_and_spreads() -> None:
    choice = chosen(plan_with("farthest-point"), REWARDS, LINE)
    assert choice.ancestor_index.tolist() == [0, 2, 5]
    assert np.asarray(choice.numbers["place"]).tolist() == [2, -1, 0, -1, -1, 1]


def test_dpp_keeps_the_set_of_the_largest_determinant() -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        features = generator.normal(size=(6, 3))
        kept = chosen(plan_with("dpp"), REWARDS, features).ancestor_index
        kernel = gaussian_kernel(features, 1.0)
        first = [0]
        for _ in range(2):
            worth = [
                -1.0 if one in first else np.linalg.det(kernel[np.ix_([*first, one], [*first, one])])
                for one in range(6)
            ]
            first.append(int(np.argmax(worth)))
        assert kept.tolist() == sorted(first)


@pytest.mark.parametrize("name", ["dpp", "farthest-point", "density", "cluster-best"])
def test_coinciding_images_leave_distinct_slots(name: str) -> None:
    choice = chosen(plan_with(name), [1.0] * 6, np.ones((6, 2)))
    assert choice.ancestor_index.tolist() == [0, 1, 2]


def test_density_keeps_what_is_common_and_draws_the_rest() -> None:
    features = np.array([[50.0], [0.0], [0.1], [0.2], [90.0], [-70.0]])
    choice = chosen(plan_with("density"), REWARDS, features)
    assert choice.ancestor_index.tolist() == [1, 2, 3]
    density = np.asarray(choice.numbers["density"])
    assert density[2] > density[1] > density[0] > 0
    drawn = [
        chosen(plan_with("density", random_share=0.5), REWARDS, features, seed).ancestor_index.tolist()
        for seed in range(40)
    ]
    assert all(2 in kept for kept in drawn), "two of the densest are always kept"
    assert {slot for kept in drawn for slot in kept} >= {0, 4, 5}


def test_cluster_best_keeps_the_best_of_each_cluster_wherever_it_lies() -> None:
    features = np.array([[0.0], [1.0], [2.0], [50.0], [51.0], [90.0]])
    rewards = [0.9, 0.1, 0.5, -1.0, -2.0, -9.0]
    assert chosen(plan_with("cluster-best"), rewards, features).ancestor_index.tolist() == [0, 3, 5]
    assert chosen(plan_with("cluster"), rewards, features).ancestor_index.tolist() == [1, 3, 5]


@pytest.mark.parametrize("normalise", ["z-score", "rank"])
def test_normalised_potentials_do_not_depend_on_units(normalise: str) -> None:
    plan = plan_with("resample", normalise=normalise)
    rewards = [0.1, 0.4, 0.3, 0.3, -2.0, 0.0]
    weights = np.asarray(chosen(plan, rewards).numbers["log_weights"])
    scaled = np.asarray(chosen(plan, [1000 * one + 7 for one in rewards]).numbers["log_weights"])
    np.testing.assert_allclose(weights, scaled, rtol=1e-9, atol=1e-9)
    if normalise == "rank":
        np.testing.assert_allclose(weights, [4.0, 10.0, 7.0, 7.0, 0.0, 2.0])
    else:
        assert (weights.mean(), weights.std()) == (pytest.approx(0, abs=1e-9), pytest.approx(10))
    raw = np.asarray(chosen(plan_with("resample"), rewards).numbers["log_weights"])
    np.testing.assert_allclose(raw, 10 * np.array(rewards))


def test_a_list_of_lambdas_goes_to_the_resamplings_by_scale() -> None:
    plan = compile_plan(
        scale_schedule=SEVEN_SCALES, resample_scales=[4, 2], cluster_scales=[1], lambda_=[3, 7]
    )
    found = {one.scale_index: one.operator for one in plan.selections}
    assert found[2] == Resample(lambda_=3.0)
    assert found[4] == Resample(lambda_=7.0)
    with pytest.raises(ConfigurationError) as raised:
        compile_plan(scale_schedule=SEVEN_SCALES, resample_scales=[4], cluster_scales=[], lambda_=[3, 7])
    assert "lambda: expected one number, or one for each of the plan's 1 resamplings" in str(raised.value)
    with pytest.raises(ConfigurationError, match=r"lambda\[1\]: expected a finite number of at least 0"):
        compile_plan(scale_schedule=SEVEN_SCALES, resample_scales=[2, 4], cluster_scales=[], lambda_=[3, -7])


def test_one_setting_gives_an_option_to_all_and_an_entry_its_own() -> None:
    plan = compile_plan(
        scale_schedule=SEVEN_SCALES,
        lambda_=3.0,
        selections=[
            SelectionSetting(scale=2, operator="resample"),
            SelectionSetting(scale=4, operator="resample", options={"lambda": 7, "potential": "max"}),
        ],
    )
    assert [selection.operator for selection in plan.selections] == [
        Resample(lambda_=3.0),
        Resample(lambda_=7.0, potential=PotentialKind.MAX),
    ]
