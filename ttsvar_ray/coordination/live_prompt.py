"""One prompt that is being worked on: its population, and where its trajectories are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ttsvar_ray.coordination.population import Population

SUSPICIONS_BEFORE_ISOLATION = 2
"""Deaths of workers, in one segment, after which a prompt runs alone: by then the usual cause (a machine
taken away) is less likely than a prompt that kills, and running alone proves which it is."""


@dataclass(slots=True, kw_only=True)
class LivePrompt:
    """A started prompt.

    Attributes:
        attempt: names the state that workers hold for it; raised when that state is given up.
        repeats: times that shards were lost with a worker and run again.
        failures: failed attempts at the present segment.
        suspicions: workers that died in the present segment while running this prompt among others.
        errors: everything that went wrong, in order.
        seats: worker of each slot that waits, runs or is held somewhere; the others wait for a place,
            or were reported and are known by their bits only.
        in_flight: batch of each slot that runs.
        parent_seats: worker that holds a member of the population before the last selection.
        touched: workers that may hold state of this attempt; in order of first use.
        charges: what each worker is charged for this prompt; kept by `Custody`.
        lingering: of it, what the parents of the parents cost a worker until it is sent a task of the
            present segment, which makes it forget them; kept by `Custody`.
        commitments: what each worker that it was started on keeps for its growth; kept by `Custody`.
        rebuilt: parents that each worker was sent the bits of in the present segment, beside those of
            `parent_seats`.
        avoid: workers that failed this prompt.
        piecemeal_on: worker that is kept free for this prompt alone, because no worker has room for its
            whole population; runs as much as fits, keeps the bits, goes on with the rest.
    """

    population: Population
    attempt: int = 1
    repeats: int = 0
    failures: int = 0
    suspicions: int = 0
    errors: list[str] = field(default_factory=list)
    seats: dict[int, str] = field(default_factory=dict)
    in_flight: dict[int, int] = field(default_factory=dict)
    parent_seats: dict[int, str] = field(default_factory=dict)
    touched: dict[str, None] = field(default_factory=dict)
    charges: dict[str, int] = field(default_factory=dict)
    lingering: dict[str, int] = field(default_factory=dict)
    commitments: dict[str, int] = field(default_factory=dict)
    rebuilt: dict[str, set[int]] = field(default_factory=dict)
    avoid: set[str] = field(default_factory=set)
    piecemeal_on: str | None = None

    @property
    def key(self) -> str:
        """The prompt's unique name."""
        return self.population.prompt.key

    @property
    def attempts(self) -> int:
        """Times that any of its work was begun."""
        return self.attempt + self.repeats

    @property
    def runs_alone(self) -> bool:
        """Whether it has been near so many deaths that it must not endanger others."""
        return self.suspicions >= SUSPICIONS_BEFORE_ISOLATION

    @property
    def unseated(self) -> list[int]:
        """Slots that must run and have no worker, ascending."""
        return [slot for slot in self.population.unreported if slot not in self.seats]

    def seated_on(self, worker_id: str) -> list[int]:
        """Return the slots that wait, run or are held on one worker."""
        return [slot for slot, seat in self.seats.items() if seat == worker_id]

    def runs_on(self, worker_id: str) -> bool:
        """Return whether one of its slots is in flight on a worker."""
        return any(self.seats[slot] == worker_id for slot in self.in_flight)

    def parents_on(self, worker_id: str) -> frozenset[int]:
        """Return the parents that a worker holds."""
        return frozenset(parent for parent, seat in self.parent_seats.items() if seat == worker_id)

    def parents_needed_on(self, worker_id: str) -> frozenset[int]:
        """Return the parents that a worker holds, has rebuilt, or must rebuild for what is seated there."""
        parent_slots = self.population.parent_slots
        if not parent_slots:
            return frozenset()
        seated = (parent_slots[slot] for slot in self.seated_on(worker_id))
        return self.parents_on(worker_id).union(seated, self.rebuilt.get(worker_id, ()))

    def parent_of(self, slots: Iterable[int]) -> dict[int, int]:
        """Return the parent of each slot; nothing in segment 0."""
        parent_slots = self.population.parent_slots
        return {slot: parent_slots[slot] for slot in slots} if parent_slots else {}

    def homes(self, slots: Iterable[int]) -> dict[int, str]:
        """Return the worker that holds the parent of each slot; slots without one are left out."""
        parent_slots = self.population.parent_slots
        if not parent_slots:
            return {}
        held = ((slot, self.parent_seats.get(parent_slots[slot])) for slot in slots)
        return {slot: home for slot, home in held if home is not None}

    def begin_segment(self) -> None:
        """Turn the reported population into the parents of the next one."""
        assert not self.in_flight
        self.parent_seats = self.seats
        self.seats = {}
        self.rebuilt.clear()
        self.failures = 0
        self.suspicions = 0
