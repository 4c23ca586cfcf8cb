"""What waits on one worker, and which of it runs next.

Slots of a prompt wait together. A batch takes slots of one segment, because only trajectories before
the same scale share a forward pass. Populations shrink on their way, so a prompt's late segments fill a
small part of a batch: while a worker is busy it may wait for company, and of what fills a batch the
furthest segment goes first, because finishing a prompt frees memory and starting one costs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Queue:
    """What waits for one segment: slots by prompt, oldest first, and how many they are."""

    slots: dict[str, list[int]] = field(default_factory=dict)
    rows: int = 0


class BacklogView:
    """Slots that wait on one worker, by segment and prompt, oldest first; to be read."""

    def __init__(self) -> None:
        self._queues: dict[int, _Queue] = {}
        self._alone: dict[str, tuple[int, list[int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._queues or self._alone)

    @property
    def num_rows(self) -> int:
        """Trajectories that wait."""
        return sum(rows for _, rows in self.rows_by_segment())

    def rows_by_segment(self) -> Iterator[tuple[int, int]]:
        """Yield (segment index, trajectories that wait); a segment may come twice."""
        for segment_index, queue in self._queues.items():
            yield segment_index, queue.rows
        for segment_index, slots in self._alone.values():
            yield segment_index, len(slots)

    @property
    def wants_alone(self) -> bool:
        """Whether something waits that has to have the worker for itself."""
        return bool(self._alone)

    def last(self) -> tuple[str, tuple[int, ...]]:
        """Return the prompt that would run last, and its slots; something must wait in company."""
        queue = self._queues[min(self._queues)]
        prompt_key = next(reversed(queue.slots))
        return prompt_key, tuple(queue.slots[prompt_key])

    def rows_missing(self, limits: Sequence[int], *, is_idle: bool) -> int:
        """Return how many trajectories of segment 0 the next batch should wait for.

        An idle worker starts something new only where nothing further along waits; a busy one also
        where what waits would leave part of a batch empty.

        Args:
            limits: trajectories that fill a batch, by segment.
        """
        if self._alone or any(queue.rows >= limits[index] for index, queue in self._queues.items()):
            return 0
        if is_idle and any(segment_index > 0 for segment_index in self._queues):
            return 0
        return limits[0] - (self._queues[0].rows if 0 in self._queues else 0)

    def next_batch(
        self, limits: Sequence[int], *, is_idle: bool, fits: Callable[[int], int] | None = None
    ) -> tuple[int, dict[str, tuple[int, ...]]]:
        """Return what runs next.

        Of the segments that fill a batch the furthest. Where none does: on an idle worker the furthest;
        on a busy one the fullest, because the others lose nothing by waiting for company.

        A prompt's slots are divided only where they are more than a whole batch: the rest of a divided
        prompt would delay its selection by a batch.

        Args:
            limits: trajectories that fill a batch, by segment, at least 1 each.
            is_idle: whether the worker runs nothing now. What must run alone waits for that, and
                everything else waits for it, so that a death has one suspect.
            fits: trajectories of a segment that there is memory for now, at least 1 and at most its
                limit; by default the limit.

        Returns:
            The segment, and slots by prompt; none where nothing can run now.
        """
        most = limits.__getitem__ if fits is None else fits
        if self._alone:
            if not is_idle:
                return 0, {}
            prompt_key, (segment_index, slots) = next(iter(self._alone.items()))
            return segment_index, {prompt_key: tuple(slots[: most(segment_index)])}
        if not self._queues:
            return 0, {}
        full = [index for index, queue in self._queues.items() if queue.rows >= limits[index]]
        if full or is_idle:
            segment_index = max(full or self._queues)
        else:
            segment_index = max(self._queues, key=lambda i: (self._queues[i].rows / limits[i], i))
        free = rows = most(segment_index)
        batch: dict[str, tuple[int, ...]] = {}
        for prompt_key, slots in self._queues[segment_index].slots.items():
            if len(slots) > free and (batch or len(slots) <= rows):
                continue
            batch[prompt_key] = tuple(slots[:free])
            free -= len(batch[prompt_key])
            if free == 0:
                break
        return segment_index, batch


class Backlog(BacklogView):
    """The same, to be changed."""

    def push(self, prompt_key: str, segment_index: int, slots: Sequence[int], *, alone: bool) -> None:
        """Let slots wait; `alone` keeps other prompts out of their batch and off the worker meanwhile."""
        if alone:
            _, waiting = self._alone.get(prompt_key, (segment_index, []))
            self._alone[prompt_key] = (segment_index, sorted({*waiting, *slots}))
            return
        queue = self._queues.setdefault(segment_index, _Queue())
        waiting = queue.slots.get(prompt_key, [])
        queue.slots[prompt_key] = sorted({*waiting, *slots})
        queue.rows += len(queue.slots[prompt_key]) - len(waiting)

    def take(self, segment_index: int, batch: Mapping[str, Sequence[int]]) -> None:
        """Remove what `next_batch` has returned."""
        for prompt_key, slots in batch.items():
            if prompt_key in self._alone:
                left = self._alone[prompt_key][1][len(slots) :]
                self._alone[prompt_key] = (segment_index, left)
                if not left:
                    del self._alone[prompt_key]
                continue
            queue = self._queues[segment_index]
            queue.slots[prompt_key] = queue.slots[prompt_key][len(slots) :]
            queue.rows -= len(slots)
            self._drop_empty(segment_index, prompt_key)

    def discard(self, prompt_key: str) -> list[int]:
        """Forget what waits of one prompt and return its slots."""
        _, slots = self._alone.pop(prompt_key, (0, []))
        for segment_index in [index for index, queue in self._queues.items() if prompt_key in queue.slots]:
            queue = self._queues[segment_index]
            found = queue.slots[prompt_key]
            queue.slots[prompt_key] = []
            queue.rows -= len(found)
            slots = slots + found
            self._drop_empty(segment_index, prompt_key)
        return sorted(slots)

    def _drop_empty(self, segment_index: int, prompt_key: str) -> None:
        queue = self._queues[segment_index]
        if not queue.slots[prompt_key]:
            del queue.slots[prompt_key]
        if not queue.slots:
            del self._queues[segment_index]
