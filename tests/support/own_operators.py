"""Operators that are no part of the package, good and bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal


@dataclass(frozen=True, kw_only=True)
class TooFew(Operator):
    """Keeps one trajectory, whatever it is asked."""

    name: ClassVar[str] = "too-few"
    reads: ClassVar[frozenset[Signal]] = frozenset()

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        return Choice(ancestor_index=np.array([0]))
