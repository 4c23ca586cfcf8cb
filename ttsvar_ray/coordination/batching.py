"""What waits on one worker, and which of it runs next.

Slots of a prompt wait together. A batch takes slots of one segment, because only trajectories before
the same scale share a forward pass. Populations shrink on their way, so a prompt's late segments fill a
small part of a batch: while a worker is busy it may wait for company, and of what fills a batch the
furthest segment goes first, because finishing a prompt frees memory and starting one costs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Slots of one prompt that run in one batch."""

    prompt_key: str
    slots: tuple[int, ...]


@dataclass(slots=True)
class _Lane:
    """What waits for one segment: slots by prompt, oldest first, and how many they are."""

    slots: dict[str, list[int]] = field(default_factory=dict)
    rows: int = 0


class Backlog:
    """Slots that wait on one worker, by segment and prompt, oldest first."""

    def __init__(self) -> None:
        self._lanes: dict[int, _Lane] = {}
        self._alone: dict[str, tuple[int, list[int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._lanes or self._alone)

    @property
    def num_rows(self) -> int:
        """Trajectories that wait."""
        return sum(rows for _, rows in self.rows_by_segment())

    def rows_by_segment(self) -> Iterator[tuple[int, int]]:
        """Yield (segment index, trajectories that wait); a segment may come twice."""
        for segment_index, lane in self._lanes.items():
            yield segment_index, lane.rows
        for segment_index, slots in self._alone.values():
            yield segment_index, len(slots)

    @property
    def wants_alone(self) -> bool:
        """Whether something waits that has to have the worker for itself."""
        return bool(self._alone)

    def push(self, prompt_key: str, segment_index: int, slots: Sequence[int], *, alone: bool) -> None:
        """Let slots wait; `alone` keeps other prompts out of their batch and off the worker meanwhile."""
        if alone:
            _, waiting = self._alone.get(prompt_key, (segment_index, []))
            self._alone[prompt_key] = (segment_index, sorted({*waiting, *slots}))
            return
        lane = self._lanes.setdefault(segment_index, _Lane())
        waiting = lane.slots.get(prompt_key, [])
        lane.slots[prompt_key] = sorted({*waiting, *slots})
        lane.rows += len(lane.slots[prompt_key]) - len(waiting)

    def discard(self, prompt_key: str) -> list[int]:
        """Forget what waits of one prompt and return its slots."""
        _, slots = self._alone.pop(prompt_key, (0, []))
        for segment_index in [index for index, lane in self._lanes.items() if prompt_key in lane.slots]:
            lane = self._lanes[segment_index]
            found = lane.slots.pop(prompt_key)
            lane.rows -= len(found)
            slots = slots + found
            self._drop_empty(segment_index)
        return sorted(slots)

    def last(self) -> tuple[str, tuple[int, ...]]:
        """Return the prompt that would run last, and its slots; something must wait in company."""
        lane = self._lanes[min(self._lanes)]
        prompt_key = next(reversed(lane.slots))
        return prompt_key, tuple(lane.slots[prompt_key])

    def rows_missing(self, limits: Sequence[int], *, is_idle: bool) -> int:
        """Return how many trajectories of segment 0 the next batch should wait for.

        An idle worker starts something new only where nothing further along waits; a busy one also
        where what waits would leave part of a batch empty.

        Args:
            limits: trajectories that fill a batch, by segment.
            is_idle: whether the worker runs nothing now.
        """
        if self._alone or any(lane.rows >= limits[index] for index, lane in self._lanes.items()):
            return 0
        if is_idle and any(segment_index > 0 for segment_index in self._lanes):
            return 0
        return limits[0] - (self._lanes[0].rows if 0 in self._lanes else 0)

    def take(
        self, limits: Sequence[int], *, is_idle: bool, fits: Callable[[int], int] | None = None
    ) -> tuple[int, tuple[Cut, ...]]:
        """Remove and return the next batch.

        Of the segments that fill a batch the furthest. Where none does: on an idle worker the furthest;
        on a busy one the fullest, because the others lose nothing by waiting for company.

        A prompt's slots are cut only where they are more than a whole batch: the rest of a cut prompt
        would delay its selection by a batch.

        Args:
            limits: trajectories that fill a batch, by segment, at least 1 each.
            is_idle: whether the worker runs nothing now. What must run alone waits for that, and
                everything else waits for it, so that a death has one suspect.
            fits: trajectories of a segment that there is memory for now, at least 1 and at most its
                limit; by default the limit.

        Returns:
            The segment, and at most one cut a prompt; none where nothing can run now.
        """
        if self._alone:
            return self._take_alone(limits, fits) if is_idle else (0, ())
        if not self._lanes:
            return 0, ()
        full = [index for index, lane in self._lanes.items() if lane.rows >= limits[index]]
        if full or is_idle:
            segment_index = max(full or self._lanes)
        else:
            segment_index = max(self._lanes, key=lambda i: (self._lanes[i].rows / limits[i], i))
        rows = fits(segment_index) if fits is not None else limits[segment_index]
        lane = self._lanes[segment_index]
        cuts: list[Cut] = []
        free = rows
        for prompt_key in list(lane.slots):
            slots = lane.slots[prompt_key]
            if len(slots) > free and (cuts or len(slots) <= rows):
                continue
            cuts.append(Cut(prompt_key=prompt_key, slots=tuple(slots[:free])))
            if len(slots) > free:
                lane.slots[prompt_key] = slots[free:]
            else:
                del lane.slots[prompt_key]
            free -= len(cuts[-1].slots)
            if free == 0:
                break
        lane.rows -= rows - free
        self._drop_empty(segment_index)
        return segment_index, tuple(cuts)

    def _take_alone(
        self, limits: Sequence[int], fits: Callable[[int], int] | None
    ) -> tuple[int, tuple[Cut, ...]]:
        prompt_key, (segment_index, slots) = next(iter(self._alone.items()))
        rows = fits(segment_index) if fits is not None else limits[segment_index]
        if len(slots) > rows:
            self._alone[prompt_key] = (segment_index, slots[rows:])
        else:
            del self._alone[prompt_key]
        return segment_index, (Cut(prompt_key=prompt_key, slots=tuple(slots[:rows])),)

    def _drop_empty(self, segment_index: int) -> None:
        if not self._lanes[segment_index].slots:
            del self._lanes[segment_index]
