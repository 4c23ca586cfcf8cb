"""Resampling: right on average, within a tolerance that a wrong scheme would miss."""

from __future__ import annotations

import numpy as np
import pytest

from ttsvar_ray.errors import RewardError
from ttsvar_ray.search.operators.resample import effective_sample_size, resample
from ttsvar_ray.types import Float64Array, ResamplingScheme

SCHEMES = list(ResamplingScheme)
LOG_WEIGHTS = np.log(np.array([0.05, 0.4, 0.0001, 0.25, 0.2999]))


def _counts(
    log_weights: Float64Array, survivors: int, scheme: ResamplingScheme, repeats: int
) -> Float64Array:
    """Return float64 [repeats, population] offspring counts of independent draws."""
    generator = np.random.default_rng(1234)
    return np.stack(
        [
            np.bincount(resample(log_weights, survivors, generator, scheme), minlength=len(log_weights))
            for _ in range(repeats)
        ]
    ).astype(np.float64)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("survivors", [1, 3, 8])
def test_offspring_are_proportional_to_the_weights(scheme: ResamplingScheme, survivors: int) -> None:
    repeats = 20_000
    weights = np.exp(LOG_WEIGHTS) / np.exp(LOG_WEIGHTS).sum()
    means = _counts(LOG_WEIGHTS, survivors, scheme, repeats).mean(axis=0)

    # multinomial has the largest variance of the three; five of its standard errors
    tolerance = 5.0 * np.sqrt(survivors * weights * (1.0 - weights) / repeats)
    np.testing.assert_array_less(np.abs(means - survivors * weights), tolerance)


def test_multinomial_draws_are_independent() -> None:
    """The count of a slot varies as a binomial does; systematic or stratified draws vary much less."""
    survivors, repeats = 8, 20_000
    weights = np.exp(LOG_WEIGHTS) / np.exp(LOG_WEIGHTS).sum()
    variance = _counts(LOG_WEIGHTS, survivors, ResamplingScheme.MULTINOMIAL, repeats).var(axis=0)
    expected = survivors * weights * (1.0 - weights)
    np.testing.assert_allclose(variance[[0, 1, 3, 4]], expected[[0, 1, 3, 4]], rtol=0.06)


@pytest.mark.parametrize("scheme", [ResamplingScheme.STRATIFIED, ResamplingScheme.SYSTEMATIC])
def test_the_others_vary_less(scheme: ResamplingScheme) -> None:
    multinomial = _counts(LOG_WEIGHTS, 8, ResamplingScheme.MULTINOMIAL, 4000).var(axis=0).sum()
    assert _counts(LOG_WEIGHTS, 8, scheme, 4000).var(axis=0).sum() < 0.5 * multinomial


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_of_zero_never_survives(scheme: ResamplingScheme) -> None:
    log_weights = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf])
    assert _counts(log_weights, 7, scheme, 500)[:, [0, 2, 4]].sum() == 0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
def test_uniforms_at_the_edges_have_an_owner(scheme: ResamplingScheme, uniform: float) -> None:
    class Edge:
        def random(self, count: int | None = None) -> object:
            return uniform if count is None else np.full(count, uniform)

    log_weights = np.array([-np.inf, 0.1, 0.3, -np.inf])
    drawn = resample(log_weights, 1000, Edge(), scheme)  # type: ignore[arg-type]
    assert set(drawn.tolist()) <= {1, 2}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sharp_weights_as_the_paper_uses_them_do_not_overflow(scheme: ResamplingScheme) -> None:
    log_weights = 10.0 * np.array([150.0, 151.0, -400.0])
    drawn = resample(log_weights, 1000, np.random.default_rng(0), scheme)
    assert (drawn == 1).mean() > 0.99
    assert set(drawn.tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("log_weights", "expected"),
    [([3.0, 3.0, 3.0, 3.0], 4.0), ([0.0, -np.inf, -np.inf], 1.0), ([1e4, 1e4 - 1e3], 1.0)],
)
def test_effective_sample_size(log_weights: list[float], expected: float) -> None:
    assert effective_sample_size(np.array(log_weights)) == pytest.approx(expected)


def test_effective_sample_size_by_hand() -> None:
    assert effective_sample_size(np.log([3.0, 1.0])) == pytest.approx(16.0 / 10.0)


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [([0.0, np.nan], "NaN or"), ([0.0, np.inf], "NaN or"), ([-np.inf] * 2, "no trajectory can survive")],
)
def test_weights_that_mean_nothing_are_refused(log_weights: list[float], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        resample(np.array(log_weights), 2, np.random.default_rng(0))
    with pytest.raises(RewardError, match=message):
        effective_sample_size(np.array(log_weights))
