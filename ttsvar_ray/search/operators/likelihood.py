"""Selection by likelihood: keep the trajectories whose bits the model was surest of.

The log probability of the drawn bits is known while they are drawn, so that this selects without a decode,
features or a reward.

Source: the negative log-likelihood in the energy by which DiverseAR (arXiv 2512.02931) chooses among paths;
from the paper's description.
Differs: the paper adds a penalty for peaked distributions; here the likelihood stands alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood(Operator):
    """Keeps the trajectories of the highest likelihood; of equal ones, the lower slots. Draws nothing."""

    name: ClassVar[str] = "likelihood"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.LIKELIHOOD})

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        """Keep the likeliest; the trace gets each trajectory's `log_likelihood`, in nats."""
        assert evidence.log_likelihood is not None
        best = np.argsort(-evidence.log_likelihood, kind="stable")[:count]
        return Choice(ancestor_index=best, numbers={"log_likelihood": evidence.log_likelihood})
