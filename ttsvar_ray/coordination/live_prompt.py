"""One started prompt: where its trajectories wait, run and are held, and what has gone wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ttsvar_ray.coordination.placement import Candidate
from ttsvar_ray.coordination.population import Population
from ttsvar_ray.coordination.workers import WorkerView
from ttsvar_ray.search.plan import Segment

SUSPICIONS_BEFORE_ISOLATION = 2
"""Deaths of workers, in one segment, after which a prompt runs alone: by then the usual cause (a machine
taken away) is less likely than a prompt that kills, and running alone proves which it is."""


@dataclass(slots=True, kw_only=True)
class LivePrompt:
    """A started prompt. `Residency` alone writes it; policies see it as a `PromptView`.

    Attributes:
        attempt: names the state that workers hold for it; raised when that state is given up.
        restarts: of those, how often because a round followed another one.
        repeats: times that shards were lost with a worker and run again.
        failures: failed attempts at the present segment.
        suspicions: workers that died in the present segment while running this prompt among others.
        errors: everything that went wrong, in order.
        assigned: worker of each slot that waits, runs or is held somewhere; the others have to be assigned,
            or were reported and are known by their bits only.
        in_flight: batch of each slot that runs.
        parent_holders: worker that holds a member of the population before the last selection.
        touched: workers that may hold state of this attempt; in order of first use.
        reserved: memory of each worker that is this prompt's.
        grandparents: of it, what the parents of the parents take on a worker until it is sent a task of the
            present segment, which makes it forget them.
        commitments: what each worker that it was started on keeps for its growth.
        rebuilt: parents that each worker was sent the bits of in the present segment, beside those of
            `parent_holders`.
        avoid: workers that failed this prompt.
        chunked_on: worker that is kept free for this prompt alone, because no worker has memory for its
            whole population; runs as much as fits, keeps the bits, goes on with the rest.
    """

    population: Population
    attempt: int = 1
    restarts: int = 0
    repeats: int = 0
    failures: int = 0
    suspicions: int = 0
    errors: list[str] = field(default_factory=list)
    assigned: dict[int, str] = field(default_factory=dict)
    in_flight: dict[int, int] = field(default_factory=dict)
    parent_holders: dict[int, str] = field(default_factory=dict)
    touched: dict[str, None] = field(default_factory=dict)
    reserved: dict[str, int] = field(default_factory=dict)
    grandparents: dict[str, int] = field(default_factory=dict)
    commitments: dict[str, int] = field(default_factory=dict)
    rebuilt: dict[str, set[int]] = field(default_factory=dict)
    avoid: set[str] = field(default_factory=set)
    chunked_on: str | None = None

    @property
    def key(self) -> str:
        """The prompt's unique name."""
        return self.population.key

    @property
    def segment(self) -> Segment:
        """The segment that runs now."""
        return self.population.segment

    @property
    def attempts(self) -> int:
        """Times that any of its work was begun."""
        return self.attempt + self.repeats - self.restarts

    @property
    def runs_alone(self) -> bool:
        """Whether it has been near so many deaths that it must not endanger others."""
        return self.suspicions >= SUSPICIONS_BEFORE_ISOLATION

    @property
    def unreported(self) -> tuple[int, ...]:
        """Slots that must run, are waiting or run, ascending."""
        return self.population.unreported

    @property
    def unassigned(self) -> list[int]:
        """Slots that must run and have no worker, ascending."""
        return [slot for slot in self.population.unreported if slot not in self.assigned]

    def assigned_to(self, worker_id: str) -> list[int]:
        """Return the slots that wait, run or are held on one worker."""
        return [slot for slot, worker in self.assigned.items() if worker == worker_id]

    def runs_on(self, worker_id: str) -> bool:
        """Return whether one of its slots is in flight on a worker."""
        return any(self.assigned[slot] == worker_id for slot in self.in_flight)

    def parents_on(self, worker_id: str) -> frozenset[int]:
        """Return the parents that a worker holds."""
        return frozenset(parent for parent, holder in self.parent_holders.items() if holder == worker_id)

    def parents_needed_on(self, worker_id: str) -> frozenset[int]:
        """Return the parents that a worker holds, has rebuilt, or must rebuild for what is assigned to it."""
        parent_slots = self.population.parent_slots
        if not parent_slots:
            return frozenset()
        needed = (parent_slots[slot] for slot in self.assigned_to(worker_id))
        return self.parents_on(worker_id).union(needed, self.rebuilt.get(worker_id, ()))

    def parent_of(self, slots: Iterable[int]) -> dict[int, int]:
        """Return the parent of each slot; nothing in segment 0."""
        parent_slots = self.population.parent_slots
        return {slot: parent_slots[slot] for slot in slots} if parent_slots else {}

    def holder_of(self, slots: Iterable[int]) -> dict[int, str]:
        """Return the worker that holds the parent of each slot; slots without one are left out."""
        holders = ((slot, self.parent_holders.get(parent)) for slot, parent in self.parent_of(slots).items())
        return {slot: holder for slot, holder in holders if holder is not None}

    def candidate(self, worker: WorkerView) -> Candidate:
        """Return what a worker can take of it."""
        memory, segment_index = worker.memory, self.segment.index
        free, reserved = worker.free, self.reserved.get(worker.worker_id, 0)
        if reserved and memory.children_replace_parents:
            free += reserved - memory.slots[segment_index] * len(self.assigned_to(worker.worker_id))
        return Candidate(
            worker_id=worker.worker_id,
            free=free,
            slot_memory=memory.slots[segment_index],
            parent_memory=memory.missing_parent(segment_index),
            parents=self.parents_needed_on(worker.worker_id) if reserved else frozenset(),
        )

    def needed(self, worker: WorkerView) -> int:
        """Return the memory that it needs on a worker now, counted from nothing."""
        memory, worker_id = worker.memory, worker.worker_id
        parents = (
            self.parents_on(worker_id)
            if memory.children_replace_parents
            else self.parents_needed_on(worker_id)
        )
        return self.grandparents.get(worker_id, 0) + memory.needed(
            self.segment.index, slots=len(self.assigned_to(worker_id)), parents=len(parents)
        )

    def forget_worker(self, worker_id: str) -> None:
        """Note that a worker is gone, with all that it ran and held."""
        self.touched.pop(worker_id, None)
        self.avoid.discard(worker_id)
        self.forget_parents(worker_id)
        for slot in self.assigned_to(worker_id):
            del self.assigned[slot]
            self.in_flight.pop(slot, None)
        for kept in (self.reserved, self.commitments, self.grandparents, self.rebuilt):
            kept.pop(worker_id, None)

    def forget_parents(self, worker_id: str) -> None:
        """Note that a worker holds no parent any more: the next task there carries their bits."""
        held = self.parent_holders.items()
        self.parent_holders = {parent: holder for parent, holder in held if holder != worker_id}

    def record_move(self, worker_of: Mapping[int, str], reason: str) -> None:
        """Write a move down with the selection that its slots come from; what begins or is ended has none."""
        trace = self.population.trace
        if self.segment.index == 0 or not trace[-1].ancestor_index:
            return
        record = trace[-1]
        placement = list(record.placement)
        for slot, worker_id in worker_of.items():
            if slot < len(placement):
                placement[slot] = worker_id
        trace[-1] = replace(
            record,
            placement=tuple(placement),
            moved=record.moved + len(worker_of),
            reason="; ".join(filter(None, [record.reason, reason])),
        )
