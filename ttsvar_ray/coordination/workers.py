"""The workers as a coordinator sees them: what their memory holds, what waits, what is in flight.

Memory is counted in bytes where they are known, else in trajectories. In bytes, by segment: a parent that is
held, or will be rebuilt, costs what it holds; a slot that waits, runs or is held costs what it will hold;
what runs costs the rest of what it takes while it runs, once, for a worker runs one batch at a time. Where
every forward pass has the same number of rows, what runs costs nothing more: the largest pass is kept free
for it, always. Early segments are small and wide, late ones large and few: the same memory has many prompts
that begin and few that end. In trajectories every one costs one, and children take their parents' place.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ttsvar_ray.coordination.batching import Backlog, BacklogView
from ttsvar_ray.coordination.messages import Refuse, ShardTask, WorkerJoined
from ttsvar_ray.coordination.settings import CoordinatorSettings, Workload, rows_by_segment
from ttsvar_ray.search.plan import Plan

SLOWDOWN_EMA_WEIGHT = 0.3
"""Weight of the latest answer in a worker's slowdown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryModel:
    """What trajectories need of a worker's memory, by segment.

    Attributes:
        slots: of a trajectory that waits, runs or is held in the segment.
        parents: of a parent that is held or has to be rebuilt for the segment.
        running: of a trajectory while it runs, on top of its slot.
        reserve: what nothing that waits or is held may use, so that one trajectory (or one pass) can always
            run.
        children_replace_parents: whether a prompt needs memory for its slots or for its parents, whichever is
            more, instead of for both.
    """

    slots: tuple[int, ...]
    parents: tuple[int, ...]
    running: tuple[int, ...]
    reserve: int
    children_replace_parents: bool

    @classmethod
    def in_rows(cls, plan: Plan) -> MemoryModel:
        """Return the model that counts trajectories."""
        ones = (1,) * len(plan.segments)
        return cls(
            slots=ones, parents=ones, running=(0,) * len(ones), reserve=0, children_replace_parents=True
        )

    @classmethod
    def in_bytes(cls, workload: Workload) -> MemoryModel:
        """Return the model that counts bytes."""
        loads = workload.segments
        held = tuple(load.held_bytes for load in loads)
        running = tuple(
            0 if load.pass_rows else max(0, load.running_bytes - load.held_bytes) for load in loads
        )
        # A pass that is filled up has states of its own for all of its rows.
        passes = max(load.pass_rows * load.running_bytes for load in loads)
        return cls(
            slots=held,
            parents=(0, *held[:-1]),
            running=running,
            reserve=max(*running, passes),
            children_replace_parents=False,
        )

    def needed(self, segment_index: int, *, slots: int, parents: int) -> int:
        """Return what one prompt needs on a worker, without what runs."""
        of_slots = self.slots[segment_index] * slots
        of_parents = self.parents[segment_index] * parents
        return max(of_slots, of_parents) if self.children_replace_parents else of_slots + of_parents

    def missing_parent(self, segment_index: int) -> int:
        """Return what a slot needs in addition because its parent is not there yet."""
        return 0 if self.children_replace_parents else self.parents[segment_index]

    def peak(self, plan: Plan) -> int:
        """Return the most that a prompt needs on its way where one worker has all of it."""
        populations = [segment.population for segment in plan.segments]
        return max(
            self.needed(index, slots=slots, parents=parents)
            for index, (slots, parents) in enumerate(zip(populations, [0, *populations], strict=False))
        )

    @property
    def least(self) -> int:
        """What a worker must have to run the plan at all: one trajectory and its parent at a time."""
        return self.reserve + max(self.needed(i, slots=1, parents=1) for i in range(len(self.slots)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A micro-batch that a worker was asked to run and has not answered.

    Attributes:
        segment_index: of all its tasks.
        num_rows: trajectories of all its tasks.
        memory: what it takes while it runs, on top of the slots of its trajectories.
    """

    batch_id: int
    segment_index: int
    tasks: tuple[ShardTask, ...]
    num_rows: int
    memory: int = 0

    @property
    def prompt_keys(self) -> frozenset[str]:
        """Prompts that it runs for."""
        return frozenset(task.prompt.key for task in self.tasks)

    @property
    def num_replayed(self) -> int:
        """Distinct parents that are rebuilt from their bits first."""
        return sum(len(task.parent_bits) for task in self.tasks)


class WorkerState(str, enum.Enum):
    """The states of a worker; it only ever goes on to a later one."""

    READY = "ready"
    """Takes work."""
    DRAINING = "draining"
    """Finishes what it runs and is given nothing new."""
    ABANDONED = "abandoned"
    """As draining; its end was asked for, because an answer is overdue."""
    LOST = "lost"
    """Gone, with all that it held and ran."""

    @property
    def takes_work(self) -> bool:
        """Whether it may be given something new."""
        return self is WorkerState.READY

    @property
    def is_terminal(self) -> bool:
        """Whether nothing follows."""
        return self is WorkerState.LOST


class WorkerView(Protocol):
    """A worker, as policies see it; attributes as `Worker` has them."""

    @property
    def worker_id(self) -> str: ...
    @property
    def memory(self) -> MemoryModel: ...
    @property
    def capacity(self) -> int: ...
    @property
    def least(self) -> int: ...
    @property
    def limits(self) -> Sequence[int]: ...
    @property
    def weights(self) -> Sequence[float]: ...
    @property
    def slowdown(self) -> float: ...
    @property
    def reserved(self) -> int: ...
    @property
    def free(self) -> int: ...
    @property
    def backlog(self) -> BacklogView: ...
    @property
    def batches(self) -> Mapping[int, Batch]: ...
    @property
    def state(self) -> WorkerState: ...
    @property
    def runs_alone(self) -> bool: ...
    @property
    def dedicated_to(self) -> str | None: ...
    @property
    def is_idle(self) -> bool: ...
    @property
    def load(self) -> float: ...
    def slots_for_new_prompts(self, population: int) -> int: ...
    def rows_that_fit(self, segment_index: int) -> int: ...


class WorkersView(Protocol):
    """The workers that are alive, in the order in which they joined."""

    def __iter__(self) -> Iterator[WorkerView]: ...
    def __getitem__(self, worker_id: str) -> WorkerView: ...
    def get(self, worker_id: str) -> WorkerView | None: ...
    def usable(self) -> Sequence[WorkerView]: ...


@dataclass(slots=True, kw_only=True)
class Worker:
    """One worker. `Residency` alone writes it; policies see it as a `WorkerView`.

    Attributes:
        memory: what trajectories need here.
        capacity: what it has, in units of the memory model; lowered when the device runs out of memory.
        least: below this its capacity is never lowered, so that it can finish a prompt on its own.
        limits: most trajectories of a micro-batch, by segment; lowered when the device runs out of memory.
        weights: what a trajectory of each segment adds to its load.
        slowdown: how many times longer its answers take than those of the others, lately; 1 while nothing
            is known.
        peak: most memory that a whole prompt needs on its way, in its first round.
        reserved: memory of trajectories that wait, run or are held.
        committed: what the prompts that were started here, and still have memory here, may grow to.
        batches: in flight by id, the one that runs now first.
        runs_alone: whether what is in flight has to have the worker for itself.
        dedicated_to: prompt that is too large for any worker and runs here in chunks; no other prompt is
            assigned here meanwhile.
    """

    worker_id: str
    memory: MemoryModel
    capacity: int
    least: int
    limits: list[int]
    weights: tuple[float, ...]
    peak: int = 1
    reserved: int = 0
    committed: int = 0
    backlog: Backlog = field(default_factory=Backlog)
    batches: dict[int, Batch] = field(default_factory=dict)
    state: WorkerState = WorkerState.READY
    runs_alone: bool = False
    dedicated_to: str | None = None
    slowdown: float = 1.0

    @property
    def free(self) -> int:
        """Memory that further trajectories may have, at least 0."""
        running = max((batch.memory for batch in self.batches.values()), default=0)
        return max(0, self.capacity - self.reserved - max(running, self.memory.reserve))

    def slots_for_new_prompts(self, population: int) -> int:
        """Return how many of a new prompt's `population` trajectories may start here.

        Where states grow on their way, half of the memory must hold all that was started here at its
        widest; the other half is for what runs. So prompts hardly ever have to be preempted.
        """
        each = self.memory.slots[0]
        slots = min(population, self.free // each) if each else population
        if self.memory.children_replace_parents or self.reserved == 0:
            return slots
        return min(slots, max(0, self.capacity // 2 - self.committed) * population // max(1, self.peak))

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits here."""
        return not self.batches and not self.backlog

    @property
    def load(self) -> float:
        """Work still to do here, in units of the weights times its slowdown."""
        weights = self.weights
        waiting = sum(weights[segment] * rows for segment, rows in self.backlog.rows_by_segment())
        running = sum(weights[b.segment_index] * b.num_rows for b in self.batches.values())
        return self.slowdown * (waiting + running)

    def learn_slowdown(self, ratio: float) -> None:
        """Take in how many times longer than elsewhere an answer took; in proportion, so that one slow
        answer makes no slow worker."""
        weight = SLOWDOWN_EMA_WEIGHT
        self.slowdown = self.slowdown ** (1 - weight) * ratio**weight

    def rows_that_fit(self, segment_index: int) -> int:
        """Return how many trajectories of a segment may run at once now: at least one, by the reserve."""
        each = self.memory.running[segment_index]
        limit = self.limits[segment_index]
        if each == 0:
            return limit
        return max(1, min(limit, (self.capacity - self.reserved) // each))


class Workers:
    """The workers that are alive, in the order in which they joined."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._usable: list[Worker] | None = None

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._workers

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __getitem__(self, worker_id: str) -> Worker:
        return self._workers[worker_id]

    def get(self, worker_id: str) -> Worker | None:
        """Return the worker, or None if it is not alive."""
        return self._workers.get(worker_id)

    def usable(self) -> list[Worker]:
        """Return the workers that take new work; not to be changed."""
        if self._usable is None:
            self._usable = [worker for worker in self._workers.values() if worker.state.takes_work]
        return self._usable

    def add(self, worker: Worker) -> None:
        """Take a worker in."""
        assert worker.worker_id not in self._workers
        self._workers[worker.worker_id] = worker
        self._usable = None

    def advance(self, worker: Worker, state: WorkerState) -> None:
        """Note that a worker goes on to another state; one that is lost is taken out."""
        worker.state = state
        self._usable = None
        if state.is_terminal:
            del self._workers[worker.worker_id]


def worker_of(
    event: WorkerJoined, *, plan: Plan, settings: CoordinatorSettings, workload: Workload | None
) -> Worker | Refuse:
    """Return the worker as its memory, the settings and the workload allow, or why it can run nothing."""
    rows = rows_by_segment(event.rows, plan)
    if workload is None or event.memory_bytes is None:
        memory = MemoryModel.in_rows(plan)
        # In trajectories, every worker can finish a prompt on its own.
        least = max(segment.population for segment in plan.widest.segments)
        capacity = max(settings.live_rows or (settings.batches_in_flight + 2) * max(rows), least)
    else:
        memory = MemoryModel.in_bytes(workload)
        least = memory.least
        capacity = event.memory_bytes
        if capacity < least:
            return Refuse(
                worker_id=event.worker_id,
                reason=f"{capacity / 1e9:.3g} GB for trajectories: expected at least {least / 1e9:.3g} GB to "
                f"hold one trajectory and its parent and to run {_pass_text(workload)} ({workload.source}); "
                "use a device with more memory, or a smaller model or image",
            )
    return Worker(
        worker_id=event.worker_id,
        memory=memory,
        capacity=capacity,
        least=least,
        peak=memory.peak(plan),
        limits=_batch_limits(rows, capacity, memory, plan, settings.batch_tokens),
        weights=(1.0,) * len(plan.segments)
        if workload is None
        else tuple(load.row_seconds for load in workload.segments),
    )


def _pass_text(workload: Workload) -> str:
    rows = [load.pass_rows for load in workload.segments]
    if not any(rows):
        return "it"
    return f"passes of {', '.join(map(str, rows))} rows, which engine.deterministic keeps full: lower them"


def _batch_limits(
    rows: Sequence[int], capacity: int, memory: MemoryModel, plan: Plan, batch_tokens: int | None
) -> list[int]:
    """Return the trajectories that fill a batch, by segment: at least one, whatever the budgets."""
    limits = list(rows)
    if batch_tokens is not None:
        sides = plan.scale_schedule
        tokens = [sum(h * w for h, w in sides[s.first_scale : s.last_scale + 1]) for s in plan.segments]
        limits = [min(r, batch_tokens // t) for r, t in zip(limits, tokens, strict=True)]
    # Half of the memory is for what runs: a batch that takes more would have to wait for it.
    limits = [min(r, capacity // 2 // p) if p else r for r, p in zip(limits, memory.running, strict=True)]
    return [max(1, limit) for limit in limits]
