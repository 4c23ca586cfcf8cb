"""Ensembles: what the combinations are, and that they see whole populations and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from ttsvar_ray.errors import RewardError
from ttsvar_ray.search.potentials import combine
from ttsvar_ray.types import WORST_REWARD, RewardCombination

SCORES = np.array([[1.0, 0.2], [0.0, 0.3], [-2.0, 0.25]])


def test_a_reward_on_its_own_is_left_as_it_is() -> None:
    alone = np.array([[1.5], [np.nan], [-3.0]], np.float32)
    np.testing.assert_array_equal(combine(alone, None), [1.5, np.nan, -3.0])


def test_softmax_is_the_mean_of_the_members_shares() -> None:
    shares = np.exp(SCORES) / np.exp(SCORES).sum(axis=0)
    combined = combine(SCORES, RewardCombination.SOFTMAX)
    np.testing.assert_allclose(combined, shares.mean(axis=1), rtol=1e-14)
    assert combined.sum() == pytest.approx(1.0)


def test_a_z_score_gives_each_member_the_same_say() -> None:
    combined = combine(SCORES, RewardCombination.Z_SCORE)
    expected = ((SCORES - SCORES.mean(axis=0)) / SCORES.std(axis=0)).mean(axis=1)
    np.testing.assert_allclose(combined, expected, rtol=1e-12)
    rescaled = combine(SCORES * [1.0, 1000.0] + [0.0, 7.0], RewardCombination.Z_SCORE)
    np.testing.assert_allclose(rescaled, combined, rtol=1e-9)


@pytest.mark.parametrize("combination", RewardCombination)
def test_order_and_shift_of_the_scores_do_not_matter(combination: RewardCombination) -> None:
    combined = combine(SCORES, combination)
    order = [2, 0, 1]
    np.testing.assert_allclose(combine(SCORES[order], combination), combined[order], rtol=1e-12)
    np.testing.assert_allclose(combine(SCORES + 50.0, combination), combined, rtol=1e-9)


def test_equal_scores_say_nothing() -> None:
    equal = np.full((4, 2), 0.1, np.float32) * np.float32(3)
    np.testing.assert_array_equal(combine(equal, RewardCombination.Z_SCORE), np.zeros(4))
    np.testing.assert_array_equal(combine(equal, RewardCombination.SOFTMAX), np.full(4, 0.25))
    np.testing.assert_array_equal(combine(equal[:1], RewardCombination.Z_SCORE), [0.0])


@pytest.mark.parametrize("combination", RewardCombination)
def test_an_image_that_a_member_could_not_judge_comes_last_there(combination: RewardCombination) -> None:
    scores = SCORES.copy()
    scores[0, 0] = WORST_REWARD
    alone = combine(scores[:, :1].repeat(2, axis=1), combination)
    assert np.isfinite(alone).all()
    assert alone.argmin() == 0
    judged = combine(scores[1:, :1].repeat(2, axis=1), combination)
    np.testing.assert_allclose(alone[1:], judged, rtol=1e-12)


@pytest.mark.parametrize("combination", RewardCombination)
def test_a_population_that_nobody_could_judge_is_even(combination: RewardCombination) -> None:
    nobody = combine(np.full((3, 2), WORST_REWARD), combination)
    assert np.isfinite(nobody).all()
    assert np.ptp(nobody) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_with_its_member(bad: float) -> None:
    scores = SCORES.copy()
    scores[1, 1] = bad
    with pytest.raises(RewardError, match="from member 1 in slot 1"):
        combine(scores, RewardCombination.SOFTMAX)
