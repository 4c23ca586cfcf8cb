"""Resampling-based potential selection: survivors are drawn in proportion to what they promise.

All schemes are unbiased: slot i has num_survivors * w_i offspring on average, with w the normalised
weights. They differ in the variance around that average: multinomial (the published choice) draws
independently; stratified draws one in each of num_survivors equal strata; systematic shifts one grid
through all of them, and gives every slot the floor or the ceiling of its expectation. When in doubt,
systematic loses the least diversity.

Source: TTS-VAR (arXiv 2507.18537) section 3, resampling-based potential selection; of the schemes, N. Chopin
and O. Papaspiliopoulos, An Introduction to Sequential Monte Carlo (2020), chapter 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsvar_ray.errors import RewardError
from ttsvar_ray.search.operators.options import option
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal
from ttsvar_ray.search.potentials import log_potentials, scales_read
from ttsvar_ray.types import Float64Array, Int64Array, Normalisation, PotentialKind, ResamplingScheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Resample(Operator):
    """Draws with replacement by the weights exp(lambda * potential).

    Attributes:
        lambda_: sharpness of the weights; 0 makes all trajectories equally likely.
        scheme: how survivors are drawn from the weights.
        normalise: what potentials become within their population before lambda multiplies them, so that it
            means the same for every reward.
    """

    name: ClassVar[str] = "resample"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.REWARDS})
    repeats: ClassVar[bool] = True

    potential: PotentialKind = PotentialKind.VALUE
    lambda_: float = option(10.0, least=0, advice="10 is the published value")
    scheme: ResamplingScheme = ResamplingScheme.MULTINOMIAL
    normalise: Normalisation = Normalisation.NONE

    def scored_scales(self, scale_index: int) -> tuple[int, ...]:
        """Return the scales that the potential reads."""
        return scales_read(self.potential, scale_index)

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        """Draw survivors; the trace gets `log_weights` and their effective sample size `ess`."""
        assert evidence.reward_history is not None
        log_weights = log_potentials(evidence.reward_history, self.potential, self.lambda_, self.normalise)
        return Choice(
            ancestor_index=resample(log_weights, count, rng, self.scheme),
            numbers={"log_weights": log_weights, "ess": effective_sample_size(log_weights)},
        )

    def describe(self) -> str:
        """Return potential, lambda and scheme."""
        over = "" if self.normalise is Normalisation.NONE else f" as {self.normalise.value} in the population"
        return (
            f"potential {self.potential.value}{over}, lambda {self.lambda_:g}, {self.scheme.value} resampling"
        )


_BELOW_ONE = np.nextafter(1.0, 0.0)


def resample(
    log_weights: Float64Array,
    num_survivors: int,
    generator: np.random.Generator,
    scheme: ResamplingScheme = ResamplingScheme.MULTINOMIAL,
) -> Int64Array:
    """Draw survivors with replacement in proportion to exp(log_weights).

    Args:
        log_weights: float64 [population], any common shift; -inf never survives.
        num_survivors: how many to draw, >= 1; may exceed the population.
        generator: the source of the uniforms, a named stream of `ttsvar_ray.rng`.
        scheme: how the uniforms are laid out.

    Returns:
        int64 [num_survivors] ancestor slots, ascending. The order carries no information, since a
        survivor's future draws are named by its new slot; ascending keeps siblings together.

    Raises:
        RewardError: a weight is NaN or +inf, or none is above zero.
    """
    count = num_survivors
    if scheme is ResamplingScheme.MULTINOMIAL:
        positions = np.sort(generator.random(count))
    elif scheme is ResamplingScheme.STRATIFIED:
        positions = (np.arange(count) + generator.random(count)) / count
    else:
        positions = (np.arange(count) + generator.random()) / count
    return _invert(log_weights, positions)


def effective_sample_size(log_weights: Float64Array) -> float:
    """Return (sum w)^2 / sum w^2: from 1 (one trajectory has all the weight) to the population.

    Raises:
        RewardError: as in `resample`.
    """
    weights = _shifted_weights(log_weights)
    return float(weights.sum() ** 2 / np.square(weights).sum())


def _shifted_weights(log_weights: Float64Array) -> Float64Array:
    """Return weights with maximum 1: a common factor, so nothing overflows and nothing else changes."""
    log_weights = np.asarray(log_weights, dtype=np.float64)
    assert log_weights.ndim == 1, f"expected [population], got {log_weights.shape}"
    assert log_weights.size >= 1, "expected at least one trajectory"
    if np.isnan(log_weights).any() or np.isposinf(log_weights).any():
        raise RewardError("log_weights: expected numbers below infinity, got NaN or +inf; fix the reward.")
    highest = log_weights.max()
    if np.isneginf(highest):
        raise RewardError(
            "log_weights: expected at least one above -inf, got none; no trajectory can survive."
        )
    return np.asarray(np.exp(log_weights - highest), dtype=np.float64)


def _invert(log_weights: Float64Array, positions: Float64Array) -> Int64Array:
    """Map ascending positions in [0, 1) through the inverse distribution function."""
    cumulative = np.cumsum(_shifted_weights(log_weights))
    cumulative /= cumulative[-1]  # ends at exactly 1, so that every position has an owner
    positions = np.minimum(positions, _BELOW_ONE)  # (m - 1 + u) / m may round up to 1
    # side="right" never lands on a slot of weight zero: its step has no width
    return np.searchsorted(cumulative, positions, side="right").astype(np.int64)
