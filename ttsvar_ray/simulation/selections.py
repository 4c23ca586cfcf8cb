"""Selections as a simulation makes them: counted, and if wished replaced by something that costs less.

Whom a selection keeps changes nothing about the time of a simulated run but how often siblings share a
parent.
"""

from __future__ import annotations

import math
import random

import numpy as np
import numpy.typing as npt

from ttsvar_ray.search.plan import Plan, Selection
from ttsvar_ray.search.selection import Select, SelectionOutcome
from ttsvar_ray.types import SelectionKind

_NO_LABELS = np.empty(0, dtype=np.int64)
_NO_WEIGHTS = np.empty(0)


class CountedSelections:
    """Calls a selection and counts what kinds there were."""

    def __init__(self, select: Select) -> None:
        self.clusterings = 0
        self.resamplings = 0
        self._select = select

    def __call__(
        self,
        plan: Plan,
        selection: Selection,
        *,
        features: npt.NDArray[np.floating] | None,
        reward_history: npt.NDArray[np.floating],
        run_seed: int,
        prompt_key: str,
    ) -> SelectionOutcome:
        """Select, and count."""
        if selection.kind is SelectionKind.CLUSTER:
            self.clusterings += 1
        else:
            self.resamplings += 1
        return self._select(
            plan,
            selection,
            features=features,
            reward_history=reward_history,
            run_seed=run_seed,
            prompt_key=prompt_key,
        )


class RandomSelections:
    """Stands in for the search: distinct random ancestors in a clustering, weighted ones in a resampling."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(
        self,
        plan: Plan,
        selection: Selection,
        *,
        features: npt.NDArray[np.floating] | None,
        reward_history: npt.NDArray[np.floating],
        run_seed: int,
        prompt_key: str,
    ) -> SelectionOutcome:
        """Draw as many ancestors as the selection keeps; arguments as `search.selection.select`."""
        population = plan.population_before[selection.scale_index]
        if selection.kind is SelectionKind.CLUSTER:
            ancestors = self._random.sample(range(population), selection.survivors)
        else:
            # The latest reward alone is the potential VALUE, the default.
            weights = [math.exp(plan.lambda_ * float(rewards[-1])) for rewards in reward_history]
            ancestors = self._random.choices(range(population), weights, k=selection.survivors)
        return SelectionOutcome(
            ancestor_index=np.array(sorted(ancestors), dtype=np.int64),
            labels=_NO_LABELS,
            log_weights=_NO_WEIGHTS,
            ess=float("nan"),
        )
