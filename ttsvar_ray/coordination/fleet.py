"""The workers as a coordinator sees them: limits, what waits, what is in flight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ttsvar_ray.coordination.batching import Backlog
from ttsvar_ray.coordination.messages import ShardTask


@dataclass(slots=True, kw_only=True)
class Batch:
    """A micro-batch that a worker was asked to run and has not answered.

    Attributes:
        num_rows: trajectories of all its tasks.
    """

    batch_id: int
    tasks: tuple[ShardTask, ...]
    num_rows: int

    @property
    def prompt_keys(self) -> frozenset[str]:
        """Prompts that it runs for."""
        return frozenset(task.prompt.key for task in self.tasks)


@dataclass(slots=True, kw_only=True)
class Worker:
    """One worker that is alive.

    Attributes:
        rows: most trajectories of a micro-batch; lowered when the device runs out of memory.
        live_limit: most trajectories that it may run or hold.
        live_rows: trajectories that it is charged for; kept by `Custody`.
        batches: in flight by id, the one that runs now first.
        is_draining: takes no new work.
        runs_alone: whether what is in flight has to have the worker for itself.
    """

    worker_id: str
    rows: int
    live_limit: int
    live_rows: int = 0
    backlog: Backlog = field(default_factory=Backlog)
    batches: dict[int, Batch] = field(default_factory=dict)
    is_draining: bool = False
    runs_alone: bool = False

    @property
    def room(self) -> int:
        """Trajectories that it could take on, at least 0."""
        return max(0, self.live_limit - self.live_rows)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits here."""
        return not self.batches and not self.backlog

    @property
    def load(self) -> int:
        """Trajectories still to run here: a worker with less of it starts new work sooner."""
        return self.backlog.num_rows + sum(batch.num_rows for batch in self.batches.values())


class Fleet:
    """The workers that are alive, in the order in which they joined."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._workers

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def get(self, worker_id: str) -> Worker | None:
        """Return the worker, or None if it is not alive."""
        return self._workers.get(worker_id)

    def add(self, worker: Worker) -> None:
        """Take a worker in."""
        assert worker.worker_id not in self._workers
        self._workers[worker.worker_id] = worker

    def remove(self, worker_id: str) -> Worker | None:
        """Strike a worker out and return it, or None if it was not alive."""
        return self._workers.pop(worker_id, None)

    def usable(self) -> list[Worker]:
        """Return the workers that take new work."""
        return [worker for worker in self._workers.values() if not worker.is_draining]
