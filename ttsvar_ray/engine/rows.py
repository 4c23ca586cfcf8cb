"""Trajectories as rows: how shards become micro-batches, their bits bytes, and which ones a worker holds.

A micro-batch is at most `limit` trajectories of one segment. Shards are packed in the order given and a shard
may be cut; because a trajectory's result never depends on its neighbours, packing decides speed and memory
alone.

A model state has rows of many prompts. `StateStore` refers to a row of a shared state instead of copying
it out: the copy would cost as much memory traffic as the `gather` that the next segment does anyway.
A shared state is freed when its last row is dropped. Trajectories of segment s stay until a task of segment
s + 2 arrives or the prompt is released: the shards of segment s + 1 may arrive in several calls, and every
one of them needs its parents.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ttsvar_ray.coordination.messages import ShardTask
from ttsvar_ray.results import PackedBits
from ttsvar_ray.types import ScaleSchedule, UInt8Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One trajectory of a micro-batch.

    Attributes:
        task_index: which task of the call it belongs to.
        slot_index: its place among that task's slots.
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


def pack_rows(bits: Sequence[UInt8Array]) -> list[PackedBits]:
    """Pack the bits of several trajectories.

    Args:
        bits: per scale, uint8 [rows, tokens, bits_per_token] of 0 and 1.
    """
    rows = bits[0].shape[0]
    packed = [np.packbits(np.asarray(scale).reshape(rows, -1), axis=1) for scale in bits]
    return [tuple(scale[row].tobytes() for scale in packed) for row in range(rows)]


def unpack_rows(
    packed: Sequence[PackedBits], *, scale_schedule: ScaleSchedule, bits_per_token: int
) -> list[UInt8Array]:
    """Undo `pack_rows` for trajectories that have all finished the same scales.

    Args:
        packed: one entry per row, each of the first scales of `scale_schedule`.

    Returns:
        Per finished scale, uint8 [rows, h * w, bits_per_token].

    Raises:
        ValueError: the rows do not have the same number of scales, or a scale has the wrong size.
    """
    num_scales = len(packed[0])
    if any(len(row) != num_scales for row in packed):
        raise ValueError(f"packed bits: rows of one replay have {sorted({len(r) for r in packed})} scales")
    unpacked: list[UInt8Array] = []
    for scale_index in range(num_scales):
        height, width = scale_schedule[scale_index]
        count = height * width * bits_per_token
        expected = (count + 7) // 8
        for row in packed:
            if len(row[scale_index]) != expected:
                raise ValueError(
                    f"packed bits, scale {scale_index}: expected {expected} bytes "
                    f"({height}x{width} tokens of {bits_per_token} bits), got {len(row[scale_index])}"
                )
        data = np.frombuffer(b"".join(row[scale_index] for row in packed), dtype=np.uint8)
        flat = np.unpackbits(data.reshape(len(packed), expected), axis=1, count=count)
        unpacked.append(flat.reshape(len(packed), height * width, bits_per_token))
    return unpacked


StateKey = tuple[str, int]
"""(prompt key, attempt)."""


@dataclass(frozen=True, slots=True)
class HeldRow:
    """One trajectory: row `row` of the model state `state`."""

    state: Any
    row: int


@dataclass(slots=True)
class _Held:
    text: Any = None
    has_text: bool = False
    segments: dict[int, dict[int, HeldRow]] = field(default_factory=dict)


class StateStore:
    """Trajectories by (prompt key, attempt), segment and slot. Not thread-safe: one engine owns it."""

    def __init__(self) -> None:
        self._held: dict[StateKey, _Held] = {}

    def text(self, key: StateKey, encode: Callable[[], Any]) -> Any:
        """Return the prompt's encoded text, encoding it on the first call only."""
        held = self._held.setdefault(key, _Held())
        if not held.has_text:
            held.text = encode()
            held.has_text = True
        return held.text

    def hold(self, key: StateKey, segment_index: int, slot: int, row: HeldRow) -> None:
        """Remember the trajectory at `slot` after `segment_index`."""
        self._held.setdefault(key, _Held()).segments.setdefault(segment_index, {})[slot] = row

    def find(self, key: StateKey, segment_index: int, slot: int) -> HeldRow | None:
        """Return the trajectory at `slot` after `segment_index`, or None where it is not held."""
        held = self._held.get(key)
        return None if held is None else held.segments.get(segment_index, {}).get(slot)

    def forget_before(self, key: StateKey, segment_index: int) -> None:
        """Drop the trajectories of segments before `segment_index`."""
        held = self._held.get(key)
        if held is not None:
            for older in [s for s in held.segments if s < segment_index]:
                del held.segments[older]

    def release(self, key: StateKey) -> None:
        """Drop everything of one attempt; releasing what is not held is no error."""
        self._held.pop(key, None)

    @property
    def num_prompts(self) -> int:
        """Attempts that something is held for."""
        return len(self._held)

    @property
    def num_trajectories(self) -> int:
        """Trajectories held, over all attempts and segments."""
        return sum(len(slots) for held in self._held.values() for slots in held.segments.values())
