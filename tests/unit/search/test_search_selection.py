"""One selection over a population: what it reads, what it records, and which streams it draws from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ttsvar_ray.errors import ConfigurationError, RewardError
from ttsvar_ray.search.operators.protocol import Choice
from ttsvar_ray.search.plan import FinalChoice, Plan
from ttsvar_ray.search.selection import rank_final, rank_images, select
from ttsvar_ray.search.strategy import compile_plan

SCHEDULE = tuple((side, side) for side in range(1, 14))
NO_HISTORY = np.empty((16, 0))


def _clustered(run_seed: int = 0, prompt_key: str = "a#0") -> Choice:
    plan = compile_plan(scale_schedule=SCHEDULE, n=2, cluster_restarts=1)
    features = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    return select(
        plan,
        plan.selections[0],
        features=features,
        reward_history=NO_HISTORY,
        run_seed=run_seed,
        prompt_key=prompt_key,
    )


def _resampled(run_seed: int = 0, prompt_key: str = "a#0", lambda_: float = 10.0) -> Choice:
    plan = compile_plan(scale_schedule=SCHEDULE, strategy="resampling", n=16, lambda_=lambda_)
    rewards = np.linspace(-1.0, 1.0, 16, dtype=np.float32)[:, None]
    return select(
        plan,
        plan.selections[0],
        features=None,
        reward_history=rewards,
        run_seed=run_seed,
        prompt_key=prompt_key,
    )


def test_a_clustering_keeps_distinct_slots_and_says_which_cluster() -> None:
    outcome = _clustered()
    assert len(set(outcome.ancestor_index.tolist())) == 12
    assert set(outcome.numbers) == {"labels"}
    assert np.shape(outcome.numbers["labels"]) == (16,)


def test_a_resampling_records_weights_and_effective_sample_size() -> None:
    outcome = _resampled()
    np.testing.assert_allclose(outcome.numbers["log_weights"], 10.0 * np.linspace(-1.0, 1.0, 16), rtol=1e-6)
    assert 1.0 < float(outcome.numbers["ess"]) < 16.0
    assert set(outcome.numbers) == {"log_weights", "ess"}
    assert (np.diff(outcome.ancestor_index) >= 0).all()
    assert _resampled(lambda_=0.0).numbers["ess"] == pytest.approx(16.0)


def test_selections_are_named_by_seed_and_prompt() -> None:
    np.testing.assert_array_equal(_resampled().ancestor_index, _resampled().ancestor_index)
    np.testing.assert_array_equal(_clustered().ancestor_index, _clustered().ancestor_index)
    for outcome in (_resampled, _clustered):
        chosen = {tuple(outcome(run_seed=seed).ancestor_index) for seed in range(8)}
        chosen |= {tuple(outcome(prompt_key=key).ancestor_index) for key in "bcdefgh"}
        assert len(chosen) > 4


def test_history_columns_are_those_scored_up_to_the_selection() -> None:
    plan = compile_plan(scale_schedule=SCHEDULE, strategy="resampling", n=2, potential="diff", lambda_=1000)
    assert plan.scored_scales == (5, 6, 8, 9, 12)
    # by DIFF slot 0 gained at scale 9, though slot 1 is better in every score
    history = np.array([[0.0, 0.0, 0.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    outcome = select(
        plan, plan.selections[1], features=None, reward_history=history, run_seed=0, prompt_key="a#0"
    )
    assert outcome.ancestor_index.tolist() == [0, 0]
    with pytest.raises(AssertionError):
        select(plan, plan.selections[0], features=None, reward_history=history, run_seed=0, prompt_key="a#0")


def test_images_are_ranked_by_reward_then_slot() -> None:
    assert rank_images([0.5, 2.0, 0.5, 2.0, -1.0]).tolist() == [1, 3, 0, 2, 4]
    assert rank_images(np.array([0.0, -0.0], dtype=np.float32)).tolist() == [0, 1]
    with pytest.raises(RewardError, match=r"slots \[1\]"):
        rank_images([0.0, float("nan")])


def _ranked(plan: Plan) -> list[int]:
    history = np.array([[0.0, 3.0, 1.0], [9.0, 2.0, 2.0], [0.0, 0.0, 2.0]])
    assert plan.scored_scales == (6, 9, 12)
    members = np.array([[1.0, 5.0], [2.0, 7.0], [2.0, 6.0]])
    likelihood = np.array([-5.0, -4.0, -3.0])
    return rank_final(plan, reward_history=history, member_scores=members, log_likelihood=likelihood).tolist()


def test_final_images_are_ranked_as_the_plan_says() -> None:
    plan = compile_plan(scale_schedule=SCHEDULE, n=3, cluster_scales=[], resample_scales=[6, 9])
    assert _ranked(plan) == [1, 2, 0], "by the last reward, of equal ones the lower slot"
    assert _ranked(replace(plan, final=FinalChoice(ties_by_likelihood=True))) == [2, 1, 0]
    assert _ranked(replace(plan, final=FinalChoice(mean_of=(9, 12)))) == [0, 1, 2]
    assert _ranked(replace(plan, reward_members=2, final=FinalChoice(member=1))) == [1, 2, 0]


def test_scales_of_the_final_choice_are_scored_and_no_option_is_idle() -> None:
    mean = FinalChoice(mean_of=(8, 10, 12))
    plan = compile_plan(scale_schedule=SCHEDULE, strategy="best-of-n", n=3, final=mean)
    assert plan.scored_scales == (8, 10, 12)
    with pytest.raises(ConfigurationError, match="ends with one image a prompt, so that nothing is left"):
        compile_plan(scale_schedule=SCHEDULE, strategy="raw", final=mean)
    with pytest.raises(ConfigurationError, match=r"final_mean_of: expected scales from 0 to 12, got 13"):
        compile_plan(scale_schedule=SCHEDULE, n=2, final=FinalChoice(mean_of=(13,)))
