"""What a worker is charged for trajectories, and how much it has: in rows, or in bytes where they are known.

In bytes, by segment: a parent that is held, or will be rebuilt, costs what it holds; a slot that waits,
runs or is held costs what it will hold; what runs costs the rest of what it takes while it runs, once, for
a worker runs one batch at a time. Where every forward pass has the same number of rows, what runs costs
nothing more: the largest pass is kept free for it, always. Early segments are small and wide, late ones
large and few: the same memory has many prompts that begin and few that end.

In rows every trajectory costs one, and children take their parents' place.
"""

from __future__ import annotations

from dataclasses import dataclass

from ttsvar_ray.coordination.workload import Workload
from ttsvar_ray.search.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """Prices by segment.

    Attributes:
        slots: of a trajectory that waits, runs or is held in the segment.
        parents: of a parent that is held or has to be rebuilt for the segment.
        running: of a trajectory while it runs, on top of its slot.
        reserve: what is never promised to anything that waits or is held, so that one trajectory (or one
            pass) can always run.
        children_replace_parents: whether a prompt pays for its slots or for its parents, whichever is
            more, instead of for both.
        unit: for people.
    """

    slots: tuple[int, ...]
    parents: tuple[int, ...]
    running: tuple[int, ...]
    reserve: int
    children_replace_parents: bool
    unit: str

    def charge(self, segment_index: int, *, slots: int, parents: int) -> int:
        """Return what one prompt is charged on a worker, without what runs."""
        slot_price = self.slots[segment_index] * slots
        parent_price = self.parents[segment_index] * parents
        return max(slot_price, parent_price) if self.children_replace_parents else slot_price + parent_price

    def parent_price(self, segment_index: int) -> int:
        """Return what it costs on top of a slot that its parent is not there yet."""
        return 0 if self.children_replace_parents else self.parents[segment_index]

    def peak(self, plan: Plan) -> int:
        """Return the most that a prompt is charged on its way where one worker has all of it."""
        populations = [segment.population for segment in plan.segments]
        return max(
            self.charge(index, slots=slots, parents=parents)
            for index, (slots, parents) in enumerate(zip(populations, [0, *populations], strict=False))
        )

    @property
    def least(self) -> int:
        """What a worker must have to run the plan at all: one trajectory and its parent at a time."""
        places = range(len(self.slots))
        return max(self.charge(index, slots=1, parents=1) for index in places) + self.reserve


def row_tariff(plan: Plan) -> Tariff:
    """Return the tariff that counts trajectories."""
    ones = (1,) * len(plan.segments)
    return Tariff(
        slots=ones,
        parents=ones,
        running=(0,) * len(ones),
        reserve=0,
        children_replace_parents=True,
        unit="trajectories",
    )


def byte_tariff(workload: Workload) -> Tariff:
    """Return the tariff that counts bytes."""
    loads = workload.segments
    held = tuple(load.held_bytes for load in loads)
    running = tuple(0 if load.pass_rows else max(0, load.running_bytes - load.held_bytes) for load in loads)
    # A pass that is filled up has states of its own for all of its rows.
    passes = max(load.pass_rows * load.running_bytes for load in loads)
    return Tariff(
        slots=held,
        parents=(0, *held[:-1]),
        running=running,
        reserve=max(*running, passes),
        children_replace_parents=False,
        unit="bytes",
    )
