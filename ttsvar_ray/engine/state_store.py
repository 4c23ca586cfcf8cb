"""What one worker holds: the trajectories of each prompt's last segments, and its encoded text.

A model state has rows of many prompts. The store refers to a row of a shared state instead of copying
it out: the copy would cost as much memory traffic as the `gather` that the next segment does anyway.
A shared state is freed when its last row is dropped.

Trajectories of segment s stay until a task of segment s + 2 arrives or the prompt is released: the
shards of segment s + 1 may arrive in several calls, and every one of them needs its parents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
