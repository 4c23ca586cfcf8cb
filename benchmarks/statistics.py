"""Means with standard errors over prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its standard error over independent prompts."""

    mean: float
    standard_error: float

    def __format__(self, spec: str) -> str:
        """Format as "0.712 ± 0.011"; with "+" the mean carries its sign."""
        sign = "+" if spec == "+" else ""
        return f"{self.mean:{sign}.3f} ± {self.standard_error:.3f}"

    def __str__(self) -> str:
        return format(self, "")


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % bootstrap interval over prompts."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """Format as "0.712 (0.690, 0.733)"; with "+" all numbers carry their sign."""
        sign = "+" if spec == "+" else ""
        return f"{self.mean:{sign}.3f} ({self.low:{sign}.3f}, {self.high:{sign}.3f})"

    def __str__(self) -> str:
        return format(self, "")


def interval(per_prompt: npt.NDArray[np.float64], *, resamples: int = 2000) -> Interval:
    """Return the mean over prompts with its interval: the same prompts drawn again, with repeats."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(per_prompt), size=(resamples, len(per_prompt)))
    low, high = np.quantile(per_prompt[drawn].mean(axis=1), [0.025, 0.975])
    return Interval(float(per_prompt.mean()), float(low), float(high))


def estimate(per_prompt: npt.NDArray[np.float64]) -> Estimate:
    """Return the mean over prompts, one number per prompt."""
    return Estimate(float(per_prompt.mean()), float(per_prompt.std(ddof=1) / np.sqrt(len(per_prompt))))


def paired_difference(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> Estimate:
    """Return the mean of a - b with the standard error of the paired difference."""
    return estimate(a - b)
