"""Resampling-based potential selection: survivors are drawn in proportion to what they promise.

Source: TTS-VAR (arXiv 2507.18537) section 3, resampling-based potential selection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsvar_ray.search.operators.options import option
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal
from ttsvar_ray.search.potentials import log_potentials, scales_read
from ttsvar_ray.search.resampling import effective_sample_size, resample
from ttsvar_ray.types import PotentialKind, ResamplingScheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Resample(Operator):
    """Draws with replacement by the weights exp(lambda * potential).

    Attributes:
        potential: how a reward history becomes a potential.
        lambda_: sharpness of the weights; 0 makes all trajectories equally likely.
        scheme: how survivors are drawn from the weights.
    """

    name: ClassVar[str] = "resample"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.REWARDS})
    repeats: ClassVar[bool] = True

    potential: PotentialKind = PotentialKind.VALUE
    lambda_: float = option(10.0, least=0, advice="10 is the published value")
    scheme: ResamplingScheme = ResamplingScheme.MULTINOMIAL

    def scored_scales(self, scale_index: int) -> tuple[int, ...]:
        """Return the scales that the potential reads."""
        return scales_read(self.potential, scale_index)

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        """Draw survivors; the trace gets `log_weights` and their effective sample size `ess`."""
        assert evidence.reward_history is not None
        log_weights = log_potentials(evidence.reward_history, self.potential, self.lambda_)
        return Choice(
            ancestor_index=resample(log_weights, count, rng, self.scheme),
            numbers={"log_weights": log_weights, "ess": effective_sample_size(log_weights)},
        )

    def describe(self) -> str:
        """Return potential, lambda and scheme."""
        return f"potential {self.potential.value}, lambda {self.lambda_:g}, {self.scheme.value} resampling"
