"""What waits on one worker, and which of it runs next.

Slots of a prompt wait together. A batch takes slots of one segment, because only trajectories before
the same scale share a forward pass. Populations shrink on their way, so a prompt's late segments fill a
small part of a batch: while a worker is busy it may wait for company, and of what fills a batch the
furthest segment goes first, because finishing a prompt frees memory and starting one costs it.
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

    def rows_missing(self, rows: int, *, is_idle: bool) -> int:
        """Return how many trajectories of segment 0 the next batch of up to `rows` should wait for.

        An idle worker starts something new only where nothing further along waits; a busy one also
        where what waits would leave part of a batch empty.
        """
        if self._alone or any(self._rows_in(segment) >= rows for segment in self._lanes):
            return 0
        if is_idle and any(segment_index > 0 for segment_index in self._lanes):
            return 0
        return rows - self._rows_in(0)

    def take(self, rows: int, *, is_idle: bool) -> tuple[Cut, ...]:
        """Remove and return the next batch.

        Of the segments that fill a batch the furthest. Where none does: on an idle worker the furthest;
        on a busy one the fullest, because the others lose nothing by waiting for company.

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
        full = [segment_index for segment_index in self._lanes if self._rows_in(segment_index) >= rows]
        if full or is_idle:
            segment_index = max(full or self._lanes)
        else:
            segment_index = max(self._lanes, key=lambda index: (self._rows_in(index), index))
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

    def _rows_in(self, segment_index: int) -> int:
        return sum(len(slots) for slots in self._lanes.get(segment_index, {}).values())

    def _drop_empty(self, segment_index: int) -> None:
        if not self._lanes[segment_index]:
            del self._lanes[segment_index]
