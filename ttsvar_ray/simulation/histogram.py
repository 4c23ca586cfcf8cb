"""Quantiles of many positive numbers in constant memory."""

from __future__ import annotations

import math
from collections import Counter

RESOLUTION = 0.01
"""Relative width of a bin: a quantile is off by at most half of it."""

_STEP = math.log1p(RESOLUTION)
_SMALLEST = 1e-6


class LogHistogram:
    """Counts in bins of equal relative width; the largest and the mean are exact."""

    def __init__(self) -> None:
        self.count = 0
        self.largest = 0.0
        self._sum = 0.0
        self._bins: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """Count one number of at least 0."""
        self.count += 1
        self._sum += value
        self.largest = max(self.largest, value)
        self._bins[int(math.log(max(value, _SMALLEST)) // _STEP)] += 1

    @property
    def mean(self) -> float:
        """Mean, NaN without numbers."""
        return self._sum / self.count if self.count else float("nan")

    def quantile(self, share: float) -> float:
        """Return the number that a share (0..1) of all does not exceed; NaN without numbers."""
        if not self.count:
            return float("nan")
        wanted = max(1, math.ceil(share * self.count))
        seen = 0
        for index in sorted(self._bins):
            seen += self._bins[index]
            if seen >= wanted:
                return min(math.exp((index + 0.5) * _STEP), self.largest)
        raise AssertionError("the bins count every number")
