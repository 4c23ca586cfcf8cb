"""What stands in for workers' answers and, if wished, for the search's selections.

Answers are valid for the population that they are for, and as small as that allows. Which trajectories a
selection keeps changes nothing about the time of a simulated run but how often siblings share a parent.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttsvar_ray.coordination.messages import RunBatch, SegmentReport
from ttsvar_ray.results import FinalImage, PackedBits
from ttsvar_ray.search.operators.protocol import Choice, Signal
from ttsvar_ray.search.plan import Plan, Selection
from ttsvar_ray.search.selection import Select, select
from ttsvar_ray.types import Float32Array

_POOL_ROWS = 4096
_BITS = b"\x00"
_PATCHES = (8, 32)
"""Patches and their width where the selection itself reduces them; real ones are larger."""

_IMAGE = FinalImage.of_bytes(b"", width=1, height=1, image_format="none")
_PUBLISHED_LAMBDA = 10.0


class CountedSelections:
    """Selects with the search or at random, and counts the selections that read features, and the others."""

    def __init__(self, seed: int | None) -> None:
        """Begin to count.

        Args:
            seed: of random ancestors in place of the search's (distinct ones, or drawn by rewards where an
                operator may repeat them); None: the search selects.
        """
        self.with_features = 0
        self.others = 0
        self._select: Select = select if seed is None else _RandomSelections(seed)

    def __call__(self, plan: Plan, selection: Selection, **seen: Any) -> Choice:
        """Select, and count; arguments as `search.selection.select`."""
        if Signal.FEATURES in selection.operator.reads:
            self.with_features += 1
        else:
            self.others += 1
        return self._select(plan, selection, **seen)


class _RandomSelections:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self, plan: Plan, selection: Selection, **seen: Any) -> Choice:
        slots, operator = range(plan.population_before[selection.scale_index]), selection.operator
        if not operator.repeats:
            ancestors = self._random.sample(slots, selection.survivors)
        elif Signal.REWARDS not in operator.reads:
            ancestors = self._random.choices(slots, k=selection.survivors)
        else:
            # The latest reward alone is the potential VALUE, the default.
            sharpness = getattr(operator, "lambda_", _PUBLISHED_LAMBDA)
            logs = [sharpness * float(rewards[-1]) for rewards in seen["reward_history"]]
            weights = [math.exp(one - max(logs)) for one in logs]
            ancestors = self._random.choices(slots, weights, k=selection.survivors)
        return Choice(ancestor_index=np.array(sorted(ancestors), dtype=np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class _SegmentAnswers:
    """What all reports of one segment have in common; `rewards` is the pool that theirs are taken from."""

    has_features: bool
    is_last: bool
    bits: PackedBits
    rewards: Float32Array


class ReportMaker:
    """Makes the reports of a plan's segments out of fixed pools of random numbers."""

    def __init__(self, plan: Plan, *, seed: int, feature_dim: int, most_rows: int) -> None:
        """Draw the pools.

        Args:
            plan: whose segments are reported.
            seed: of the pools.
            feature_dim: numbers of one image's features, where they arrive as one vector.
            most_rows: most slots of one report.
        """
        random = np.random.default_rng(seed)
        pool_rows = _POOL_ROWS + most_rows
        shape = (feature_dim,) if plan.joint_component is None else _PATCHES
        self._features = random.normal(size=(pool_rows, *shape)).astype(np.float32)
        rewards = random.random((pool_rows, len(plan.scored_scales) * plan.reward_members), dtype=np.float32)
        self._segments = tuple(
            _SegmentAnswers(
                has_features=Signal.FEATURES in segment.reads,
                is_last=segment.is_last,
                bits=(_BITS,) * (segment.last_scale - segment.first_scale + 1),
                rewards=rewards[:, : len(segment.scored_scales) * plan.reward_members],
            )
            for segment in plan.segments
        )
        self._has_likelihood = plan.needs_likelihood
        self._next_row = 0

    def answer(self, batch: RunBatch, row_seconds: float) -> tuple[SegmentReport, ...]:
        """Return the report of each shard of a micro-batch.

        Args:
            row_seconds: time of the micro-batch that each of its trajectories took part in to some use.
        """
        reports = []
        for task in batch.tasks:
            answers = self._segments[task.segment_index]
            count = len(task.slots)
            first = self._next_row
            self._next_row = (first + count) % _POOL_ROWS
            reports.append(
                SegmentReport(
                    prompt_key=task.prompt.key,
                    attempt=task.attempt,
                    segment_index=task.segment_index,
                    slots=task.slots,
                    features=self._features[first : first + count] if answers.has_features else None,
                    rewards=answers.rewards[first : first + count],
                    log_likelihood=np.zeros(count) if self._has_likelihood else None,
                    bits=(answers.bits,) * count,
                    images=(_IMAGE,) * count if answers.is_last else (),
                    seconds=row_seconds * count,
                )
            )
        return tuple(reports)
