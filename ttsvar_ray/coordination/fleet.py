"""The workers as a coordinator sees them: limits, what waits, what is in flight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ttsvar_ray.coordination.batching import Backlog
from ttsvar_ray.coordination.messages import ShardTask
from ttsvar_ray.coordination.tariff import Tariff

NEWS = 0.3
"""Weight of the latest answer in a worker's pace."""


@dataclass(slots=True, kw_only=True)
class Batch:
    """A micro-batch that a worker was asked to run and has not answered.

    Attributes:
        segment_index: of all its tasks.
        num_rows: trajectories of all its tasks.
        charge: what it takes while it runs, on top of the slots of its trajectories.
    """

    batch_id: int
    segment_index: int
    tasks: tuple[ShardTask, ...]
    num_rows: int
    charge: int = 0

    @property
    def prompt_keys(self) -> frozenset[str]:
        """Prompts that it runs for."""
        return frozenset(task.prompt.key for task in self.tasks)

    @property
    def num_replayed(self) -> int:
        """Distinct parents that are rebuilt from their bits first."""
        return sum(len(task.parent_bits) for task in self.tasks)


@dataclass(slots=True, kw_only=True)
class Worker:
    """One worker that is alive.

    Attributes:
        tariff: what trajectories cost it.
        capacity: what it has, in units of the tariff; lowered when the device runs out of memory.
        least: below this its capacity is never lowered, so that it can finish a prompt on its own.
        limits: most trajectories of a micro-batch, by segment; lowered when the device runs out of memory.
        weights: what a trajectory of each segment adds to its load.
        pace: how many times longer its answers take than those of the others, lately; 1 while nothing is
            known.
        peak: most that a whole prompt is charged on its way.
        charged: what it is charged for trajectories that wait, run or are held; kept by `Custody`.
        committed: what the prompts that were started here, and are still charged, may come to; kept by
            `Custody`.
        batches: in flight by id, the one that runs now first.
        is_draining: takes no new work.
        is_abandoned: its end was asked for.
        runs_alone: whether what is in flight has to have the worker for itself.
        reserved_for: prompt that is too large for any worker and runs here piece by piece; no other
            prompt is placed here meanwhile.
    """

    worker_id: str
    tariff: Tariff
    capacity: int
    least: int
    limits: list[int]
    weights: tuple[float, ...]
    peak: int = 1
    charged: int = 0
    committed: int = 0
    backlog: Backlog = field(default_factory=Backlog)
    batches: dict[int, Batch] = field(default_factory=dict)
    is_draining: bool = False
    is_abandoned: bool = False
    runs_alone: bool = False
    reserved_for: str | None = None
    pace: float = 1.0

    @property
    def room(self) -> int:
        """What may be promised to further trajectories, at least 0."""
        running = max((batch.charge for batch in self.batches.values()), default=0)
        return max(0, self.capacity - self.charged - max(running, self.tariff.reserve))

    def seats_for_new_prompts(self, population: int) -> int:
        """Return how many of a new prompt's `population` trajectories may start here.

        Where states grow on their way, half of the memory must hold all that was started here at its
        widest; the other half is for what runs. So prompts hardly ever have to be parked.
        """
        price = self.tariff.slots[0]
        seats = min(population, self.room // price) if price else population
        if self.tariff.children_replace_parents or self.charged == 0:
            return seats
        return min(seats, max(0, self.capacity // 2 - self.committed) * population // max(1, self.peak))

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits here."""
        return not self.batches and not self.backlog

    @property
    def load(self) -> float:
        """Work still to do here, in units of the weights at its pace: one with less of it starts sooner."""
        weights = self.weights
        waiting = sum(weights[segment] * rows for segment, rows in self.backlog.rows_by_segment())
        running = sum(weights[b.segment_index] * b.num_rows for b in self.batches.values())
        return self.pace * (waiting + running)

    def learn_pace(self, ratio: float) -> None:
        """Take in how many times longer than elsewhere an answer took; in proportion, so that one slow
        answer makes no slow worker."""
        self.pace = self.pace ** (1 - NEWS) * ratio**NEWS

    def rows_that_fit(self, segment_index: int) -> int:
        """Return how many trajectories of a segment may run at once now: at least one, by the reserve."""
        price = self.tariff.running[segment_index]
        limit = self.limits[segment_index]
        if price == 0:
            return limit
        return max(1, min(limit, (self.capacity - self.charged) // price))


class Fleet:
    """The workers that are alive, in the order in which they joined."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._usable: list[Worker] | None = None

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
        self._usable = None

    def remove(self, worker_id: str) -> Worker | None:
        """Strike a worker out and return it, or None if it was not alive."""
        self._usable = None
        return self._workers.pop(worker_id, None)

    def drain(self, worker: Worker) -> None:
        """Give a worker nothing new."""
        worker.is_draining = True
        self._usable = None

    def usable(self) -> list[Worker]:
        """Return the workers that take new work; not to be changed."""
        if self._usable is None:
            self._usable = [worker for worker in self._workers.values() if not worker.is_draining]
        return self._usable
