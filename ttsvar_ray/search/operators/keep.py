"""No selection: a look at the rewards, after which everybody goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep(Operator):
    """Keeps every trajectory, and has it scored. An adaptive plan has it where a round may be abandoned and
    nothing else selects."""

    name: ClassVar[str] = "keep"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.REWARDS})
    repeats: ClassVar[bool] = True

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        """Keep all."""
        assert count == evidence.population
        return Choice(ancestor_index=np.arange(count))
