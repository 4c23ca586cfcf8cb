"""What waits on one worker, and which of it runs next.

Slots of a prompt wait together. A batch takes slots of one segment, because only trajectories before
the same scale share a forward pass; the furthest segment goes first, because finishing a prompt frees
memory and starting one costs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Slots of one prompt that run in one batch."""

    prompt_key: str
    slots: tuple[int, ...]


class Backlog:
    """Slots that wait on one worker, by segment and prompt, oldest first."""

    def __init__(self) -> None:
        self._lanes: dict[int, dict[str, list[int]]] = {}
        self._alone: dict[str, list[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._lanes or self._alone)

    @property
    def num_rows(self) -> int:
        """Trajectories that wait."""
        lanes = [*self._lanes.values(), self._alone]
        return sum(len(slots) for lane in lanes for slots in lane.values())

    @property
    def wants_alone(self) -> bool:
        """Whether something waits that has to have the worker for itself."""
        return bool(self._alone)

    def push(self, prompt_key: str, segment_index: int, slots: Sequence[int], *, alone: bool) -> None:
        """Let slots wait; `alone` keeps other prompts out of their batch and off the worker meanwhile."""
        lane = self._alone if alone else self._lanes.setdefault(segment_index, {})
        lane[prompt_key] = sorted({*lane.get(prompt_key, ()), *slots})

    def discard(self, prompt_key: str) -> list[int]:
        """Forget what waits of one prompt and return its slots."""
        slots = self._alone.pop(prompt_key, [])
        for segment_index in list(self._lanes):
            slots = slots + self._lanes[segment_index].pop(prompt_key, [])
            self._drop_empty(segment_index)
        return sorted(slots)

    def rows_missing(self, rows: int) -> int:
        """Return how many trajectories of segment 0 could join the next batch of up to `rows`."""
        if self._alone or any(segment_index > 0 for segment_index in self._lanes):
            return 0
        waiting = sum(len(slots) for slots in self._lanes.get(0, {}).values())
        return max(0, rows - waiting)

    def take(self, rows: int, *, is_idle: bool) -> tuple[Cut, ...]:
        """Remove and return the next batch.

        A prompt's slots are cut only where they are more than a whole batch: the rest of a cut prompt
        would delay its selection by a batch.

        Args:
            rows: most trajectories of the batch, at least 1.
            is_idle: whether the worker runs nothing now. What must run alone waits for that, and
                everything else waits for it, so that a death has one suspect.

        Returns:
            At most one cut a prompt; empty where nothing can run now.
        """
        if self._alone:
            return self._take_alone(rows) if is_idle else ()
        if not self._lanes:
            return ()
        segment_index = max(self._lanes)
        lane = self._lanes[segment_index]
        cuts: list[Cut] = []
        free = rows
        for prompt_key in list(lane):
            slots = lane[prompt_key]
            if len(slots) > free and (cuts or len(slots) <= rows):
                continue
            cuts.append(Cut(prompt_key=prompt_key, slots=tuple(slots[:free])))
            if len(slots) > free:
                lane[prompt_key] = slots[free:]
            else:
                del lane[prompt_key]
            free -= len(cuts[-1].slots)
            if free == 0:
                break
        self._drop_empty(segment_index)
        return tuple(cuts)

    def _take_alone(self, rows: int) -> tuple[Cut, ...]:
        prompt_key, slots = next(iter(self._alone.items()))
        if len(slots) > rows:
            self._alone[prompt_key] = slots[rows:]
        else:
            del self._alone[prompt_key]
        return (Cut(prompt_key=prompt_key, slots=tuple(slots[:rows])),)

    def _drop_empty(self, segment_index: int) -> None:
        if not self._lanes[segment_index]:
            del self._lanes[segment_index]
