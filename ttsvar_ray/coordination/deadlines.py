"""When an answer is overdue: a limit per batch, from what was predicted and what was seen.

A worker answers its batches in order, so only the oldest one has a clock. The limit is a multiple of the
seconds expected: the workload's prediction times how much slower than predicted answers of that segment
have been lately. Without a workload it is a multiple of the slowest answer seen lately. "Lately": the
slowest is forgotten bit by bit, so that one slow answer does not raise the limit for good.

A worker's first answer to a segment waits for compilation and warm-up: it teaches nothing, and until it has
come only the ceiling holds for that worker and segment.
"""

from __future__ import annotations

from dataclasses import dataclass

from ttsvar_ray.coordination.messages import Abandon
from ttsvar_ray.coordination.settings import CoordinatorSettings, Workload
from ttsvar_ray.coordination.workers import Batch, WorkerState, WorkersView, WorkerView

SLOWEST_EMA_WEIGHT = 0.05
"""Part of the slowest ratio that is forgotten with one answer: half of it after 14."""

USUAL_EMA_WEIGHT = 0.1
"""Weight of the latest answer in what is usual of a segment, over all workers."""

NAMED_PROMPTS = 3


@dataclass(slots=True)
class _Clock:
    """The oldest batch of a worker, and since when it has been that, as far as ticks tell."""

    batch_id: int
    since: float


class Deadlines:
    """Watches the oldest batch of every worker."""

    def __init__(self, settings: CoordinatorSettings, workload: Workload | None) -> None:
        self._settings = settings
        self._workload = workload
        self._now: float | None = None
        self._clocks: dict[str, _Clock] = {}
        self._warm: dict[str, set[int]] = {}
        self._slowest: dict[int, float] = {}
        self._usual: dict[int, float] = {}

    def tick(self, now: float, workers: WorkersView) -> list[Abandon]:
        """Return which workers to abandon, because their oldest answer is overdue."""
        self._now = now
        overdue = []
        for worker in workers:
            oldest = next(iter(worker.batches.values()), None)
            if oldest is None:
                self._clocks.pop(worker.worker_id, None)
                continue
            clock = self._clocks.get(worker.worker_id)
            if clock is None or clock.batch_id != oldest.batch_id:
                self._clocks[worker.worker_id] = _Clock(batch_id=oldest.batch_id, since=now)
                continue
            waited = now - clock.since
            if waited > self.limit(worker, oldest) and worker.state is not WorkerState.ABANDONED:
                overdue.append(
                    Abandon(worker_id=worker.worker_id, reason=self._reason(worker, oldest, waited))
                )
        return overdue

    def answered(self, worker: WorkerView, batch: Batch, seconds: float) -> float | None:
        """Learn from an answer.

        Returns:
            How many times longer it took than such batches do, which says something of the worker; None
            where it does not.

        Args:
            seconds: what it says that the batch took; where its clock says more, that counts.
        """
        clock = self._clocks.get(worker.worker_id)
        if clock is not None and clock.batch_id == batch.batch_id and self._now is not None:
            seconds = max(seconds, self._now - clock.since)
        warm = self._warm.setdefault(worker.worker_id, set())
        if batch.segment_index not in warm:
            warm.add(batch.segment_index)
            return None
        predicted = self._predicted(batch)
        ratio = seconds / predicted if predicted > 0 else 0.0
        known = self._slowest.get(batch.segment_index, 0.0)
        self._slowest[batch.segment_index] = max(ratio, (1 - SLOWEST_EMA_WEIGHT) * known)
        if self._workload is None or ratio <= 0:
            return None
        usual = self._usual.get(batch.segment_index, ratio)
        self._usual[batch.segment_index] = usual ** (1 - USUAL_EMA_WEIGHT) * ratio**USUAL_EMA_WEIGHT
        return ratio / usual

    def elapsed(self, worker: WorkerView) -> float:
        """Return for how long a worker's oldest batch has run, as far as ticks tell."""
        clock = self._clocks.get(worker.worker_id)
        return 0.0 if clock is None or self._now is None else self._now - clock.since

    def forget(self, worker_id: str) -> None:
        """A worker is gone; one that comes back under its name is a new one."""
        self._clocks.pop(worker_id, None)
        self._warm.pop(worker_id, None)

    def expected(self, worker: WorkerView, batch: Batch) -> float | None:
        """Return the seconds expected of a batch, or None while nothing is known."""
        slowest = self._slowest.get(batch.segment_index)
        if slowest is None or batch.segment_index not in self._warm.get(worker.worker_id, ()):
            return None
        return slowest * self._predicted(batch)

    def limit(self, worker: WorkerView, batch: Batch) -> float:
        """Return the seconds after which a batch is overdue."""
        settings = self._settings
        expected = self.expected(worker, batch)
        if expected is None:
            return settings.deadline_ceiling_seconds
        limit = max(settings.deadline_floor_seconds, settings.deadline_factor * expected)
        return min(limit, settings.deadline_ceiling_seconds)

    def _predicted(self, batch: Batch) -> float:
        if self._workload is None:
            return 1.0
        return self._workload.seconds(batch.segment_index, batch.num_rows, batch.num_replayed)

    def _reason(self, worker: WorkerView, batch: Batch, waited: float) -> str:
        keys = sorted(batch.prompt_keys)
        more = f" and {len(keys) - NAMED_PROMPTS} more" if len(keys) > NAMED_PROMPTS else ""
        expected = self.expected(worker, batch)
        known = "nothing known of that segment here" if expected is None else f"{expected:.3g} s expected"
        return (
            f"micro-batch {batch.batch_id} (segment {batch.segment_index}, {batch.num_rows} trajectories of "
            f"{', '.join(keys[:NAMED_PROMPTS])}{more}) has no answer after {waited:.3g} s; {known}, "
            f"at most {self.limit(worker, batch):.3g} s allowed"
        )
