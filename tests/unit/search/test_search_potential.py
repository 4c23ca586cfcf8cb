"""Potentials: each definition by hand, and refusal of what is not finite."""

from __future__ import annotations

import numpy as np
import pytest

from ttsvar_ray.errors import RewardError
from ttsvar_ray.search.operators.protocol import Evidence
from ttsvar_ray.search.potentials import log_potentials, scales_read
from ttsvar_ray.types import PotentialKind

HISTORY = np.array([[0.5, -1.0, 0.25], [2.0, 1.0, -0.5]], dtype=np.float32)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (PotentialKind.VALUE, [2.5, -5.0]),
        (PotentialKind.DIFF, [12.5, -15.0]),
        (PotentialKind.MAX, [5.0, 20.0]),
        (PotentialKind.SUM, [-2.5, 25.0]),
    ],
)
def test_definitions(kind: PotentialKind, expected: list[float]) -> None:
    np.testing.assert_allclose(log_potentials(HISTORY, kind, 10.0), expected)


@pytest.mark.parametrize("kind", list(PotentialKind))
def test_a_first_score_is_its_own_potential(kind: PotentialKind) -> None:
    np.testing.assert_allclose(log_potentials(HISTORY[:, :1], kind, 10.0), [5.0, 20.0])


@pytest.mark.parametrize("kind", list(PotentialKind))
def test_lambda_zero_makes_all_equal(kind: PotentialKind) -> None:
    np.testing.assert_array_equal(log_potentials(HISTORY, kind, 0.0), [0.0, 0.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_refused_by_slot(bad: float) -> None:
    history = HISTORY.astype(np.float64)
    history[1, 0] = bad
    with pytest.raises(RewardError, match=r"in slots \[1\]"):
        Evidence(population=2, reward_history=history)


def test_an_overflowing_weight_is_refused() -> None:
    with pytest.raises(RewardError, match="lower lambda or rescale"):
        log_potentials(np.array([[1e300]]), PotentialKind.VALUE, 1e10)


def test_huge_rewards_do_not_overflow() -> None:
    assert np.isfinite(log_potentials(np.array([[800.0], [900.0]]), PotentialKind.VALUE, 10.0)).all()


@pytest.mark.parametrize(
    ("kind", "first", "later"),
    [
        (PotentialKind.VALUE, (0,), (4,)),
        (PotentialKind.DIFF, (0,), (3, 4)),
        (PotentialKind.MAX, (0,), (0, 1, 2, 3, 4)),
        (PotentialKind.SUM, (0,), (0, 1, 2, 3, 4)),
    ],
)
def test_scales_that_a_potential_reads(
    kind: PotentialKind, first: tuple[int, ...], later: tuple[int, ...]
) -> None:
    assert scales_read(kind, 0) == first
    assert scales_read(kind, 4) == later
