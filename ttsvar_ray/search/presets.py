"""The published plan, and how it scales to models with another number of scales.

TTS-VAR (arXiv 2507.18537, sections 3 and 4) is written for 13 scales. For a model with K scales its
selections keep their place relative to the last scale: s becomes s * (K - 1) / 12, rounded, moved
apart where two would fall together, and kept strictly between the first and the last scale. A model
with fewer than six scales has no room for all four; kept are, in this order, the last resampling, the
first clustering, the first resampling, the second clustering.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

PUBLISHED_NUM_SCALES = 13
PUBLISHED_POPULATION = 8
PUBLISHED_SELECTIONS = (
    (2, "cluster"),
    (5, "cluster"),
    (6, "resample"),
    (9, "resample"),
)
FEWEST_SCALES = 3
"""The fewest scales with one strictly between the first and the last."""
_KEPT_FIRST = (3, 0, 2, 1)
"""Positions in `PUBLISHED_SELECTIONS`, in the order in which a short schedule keeps them."""


def published_selections(num_scales: int) -> tuple[tuple[int, str], ...]:
    """Return the published selections as (scale, operator), scaled to num_scales >= 3 scales."""
    assert num_scales >= FEWEST_SCALES
    chosen = sorted(_KEPT_FIRST[: num_scales - 2])
    selections: list[tuple[int, str]] = []
    for rank, position in enumerate(chosen):
        published_scale, operator = PUBLISHED_SELECTIONS[position]
        wanted = _round_half_up(published_scale * (num_scales - 1) / (PUBLISHED_NUM_SCALES - 1))
        earliest = selections[-1][0] + 1 if selections else 1
        latest = num_scales - 1 - (len(chosen) - rank)  # leaves a scale for each later selection
        selections.append((min(max(wanted, earliest), latest), operator))
    return tuple(selections)


def default_batch_schedule(num_scales: int, selection_scales: Iterable[int]) -> tuple[int, ...]:
    """Return survivors after each scale for N = 1: from 8 in equal steps, each at least one, to 1.

    With the published four selections this is the published 8, 6, 4, 2, 1. A selection at scale 0
    takes no step: the population before scale 0 is the one after it. With eight selections or more
    the start rises to one more than their number, so that each can drop a trajectory.
    """
    steps = sorted(scale for scale in set(selection_scales) if scale > 0)
    start = max(PUBLISHED_POPULATION, len(steps) + 1)
    schedule: list[int] = []
    for scale in range(num_scales):
        left = sum(step > scale for step in steps)
        even = _round_half_up(start * left / len(steps)) if steps else start
        schedule.append(max(even, left + 1))
    return tuple(schedule)


def _round_half_up(value: float) -> int:
    return math.floor(value + 0.5)
