"""How the shards of many prompts become micro-batches: bookkeeping only, no model.

A micro-batch is at most `limit` trajectories of one segment. Shards are packed in the order given and
a shard may be cut; because a trajectory's result never depends on its neighbours, packing decides
speed and memory alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ttsvar_ray.coordination.messages import ShardTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One trajectory of a micro-batch.

    Attributes:
        task_index: which task of the call it belongs to.
        slot_index: its place among that task's slots.
        task: the shard.
    """

    task_index: int
    slot_index: int
    task: ShardTask

    @property
    def slot(self) -> int:
        """Its slot in the population of this segment."""
        return self.task.slots[self.slot_index]

    @property
    def parent_slot(self) -> int:
        """Its ancestor's slot in the population before; only where the segment is not the first."""
        return self.task.parent_slots[self.slot_index]


def rows_of(task_index: int, task: ShardTask) -> list[Row]:
    """Return the trajectories of one shard, in slot order."""
    return [Row(task_index=task_index, slot_index=i, task=task) for i in range(len(task.slots))]


def form_micro_batches(rows: Sequence[Row], limit: int) -> list[list[Row]]:
    """Cut rows into micro-batches of nearly equal size.

    Args:
        rows: trajectories of one segment, in the order to pack them.
        limit: trajectories in one forward pass, at least 1.

    Returns:
        The fewest micro-batches that respect the limit; their sizes differ by at most one, because the
        slowest forward pass is the one that is nearly empty.
    """
    if limit < 1:
        raise ValueError(f"micro-batch limit: expected at least 1 row, got {limit}")
    count = -(-len(rows) // limit)
    bounds = [len(rows) * i // count for i in range(count + 1)] if count else [0]
    return [list(rows[a:b]) for a, b in itertools.pairwise(bounds)]
