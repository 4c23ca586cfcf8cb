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


def estimate(per_prompt: npt.NDArray[np.float64]) -> Estimate:
    """Return the mean over prompts, one number per prompt."""
    return Estimate(float(per_prompt.mean()), float(per_prompt.std(ddof=1) / np.sqrt(len(per_prompt))))


def paired_difference(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> Estimate:
    """Return the mean of a - b with the standard error of the paired difference."""
    return estimate(a - b)
