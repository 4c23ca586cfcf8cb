"""Which worker runs which trajectory, and what that costs: pure functions of counts, no state.

A trajectory stays with its parent, because going on costs nothing there, up to a share of the population;
what is beyond the share moves and is replayed from its parent's bits. How wide a share pays is a matter of
cost: a worker with more survivors than the others is done later, and each distinct parent is rebuilt once at
every worker that it moves to. `CostModel.cost_of` predicts both, and everything that weighs one worker
against another asks it: assignment, work stealing and speculative re-execution.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace

from ttsvar_ray.coordination.settings import Spread, Workload
from ttsvar_ray.coordination.workers import WorkerView
from ttsvar_ray.search.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that may be assigned trajectories.

    Attributes:
        free: memory that they may have, in units of the worker's memory model.
        slot_memory: what a trajectory needs.
        parent_memory: what a parent needs in addition that is not there yet.
        parents: parents that are there, or have their memory reserved.
    """

    worker_id: str
    free: int
    slot_memory: int = 1
    parent_memory: int = 0
    parents: frozenset[int] = frozenset()

    def fits(self, count: int) -> bool:
        """Return whether so many trajectories without parents fit."""
        return count * self.slot_memory <= self.free


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The worker of each slot, how many slots left their parent's worker, and why."""

    worker_of: Mapping[int, str]
    moved: int
    reason: str


def effective_spread(spread: Spread, *, num_prompts: int, num_workers: int, rows: int) -> int:
    """Return how many workers one prompt is sharded over now.

    Args:
        num_prompts: prompts live or waiting, this one included, at least 1.
        num_workers: workers that take new work.
        rows: trajectories to assign, at least 1.

    Returns:
        1 to `rows`. For "auto": 1 while prompts are at least as many as workers, else an even share
        of the workers, rounded up so that none idles.
    """
    wanted = -(-num_workers // num_prompts) if spread == "auto" else spread
    return max(1, min(wanted, num_workers, rows))


def feasible_spread(rows: int, candidates: Sequence[Candidate], spread: int) -> int:
    """Return the widest spread of at most `spread` whose even shares fit, the first candidate included.

    Args:
        rows: trajectories to assign.
        candidates: workers that may take them; the first one must get a share.

    Returns:
        0 where not even one worker, the first, has memory for everything.
    """
    for width in range(min(spread, rows, len(candidates)), 0, -1):
        share = -(-rows // width)
        enough = sum(candidate.fits(share) for candidate in candidates)
        if enough >= width and candidates[0].fits(share):
            return width
    return 0


def assign(
    slots: Sequence[int],
    *,
    parent_of: Mapping[int, int],
    holder_of: Mapping[int, str],
    candidates: Sequence[Candidate],
    spread: int,
) -> Assignment | None:
    """Assign slots to workers.

    Args:
        slots: to assign, ascending.
        parent_of: each slot's parent, empty in segment 0; siblings that move go together where memory
            allows, so that their parent is replayed once.
        holder_of: worker that holds the slot's parent, absent where no worker does.
        candidates: workers that may take slots, the preferred first.
        spread: workers to share the slots over, at least 1.

    Returns:
        A worker for every slot, never more on a worker than fits; None where no such assignment was
        found. Where slots need equally much and parents nothing, that is where memory is too small in all.
    """
    left = {candidate.worker_id: _Remaining(candidate) for candidate in candidates}
    share = -(-len(slots) // max(1, min(spread, len(left), len(slots))))
    worker_of: dict[int, str] = {}
    surplus: list[int] = []
    for slot in slots:
        holder = holder_of.get(slot)
        if holder is not None and holder in left and left[holder].take(parent_of.get(slot), most=share):
            worker_of[slot] = holder
        else:
            surplus.append(slot)
    movers = deque(sorted(surplus, key=lambda slot: (parent_of.get(slot, -1), slot)))
    # Even shares first; where memory is too small for that, whatever fits.
    for most in (share, len(slots)):
        for worker_id, remaining in left.items():
            while movers and remaining.take(parent_of.get(movers[0]), most=most):
                worker_of[movers.popleft()] = worker_id
    if movers:
        return None
    moved = [slot for slot in slots if parent_of and worker_of[slot] != holder_of.get(slot)]
    return Assignment(
        worker_of={slot: worker_of[slot] for slot in slots},
        moved=len(moved),
        reason=_reason(moved, holder_of, left, share),
    )


def fitting(slots: Sequence[int], *, parent_of: Mapping[int, int], candidate: Candidate) -> tuple[int, ...]:
    """Return the longest beginning of `slots` that one worker has memory for."""
    left = _Remaining(candidate)
    taken = itertools.takewhile(lambda slot: left.take(parent_of.get(slot), most=len(slots)), slots)
    return tuple(taken)


class _Remaining:
    """What a worker has left while slots are assigned."""

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self._free = candidate.free
        self._parents: set[int] | None = None
        self._taken = 0

    def take(self, parent: int | None, *, most: int) -> bool:
        """Take one slot if there is memory for it and its parent, and fewer than `most` were taken."""
        if self._taken >= most:
            return False
        candidate = self._candidate
        needed = candidate.slot_memory
        is_new = parent is not None and candidate.parent_memory > 0 and not self._has(parent)
        if is_new:
            needed += candidate.parent_memory
        if needed > self._free:
            return False
        self._free -= needed
        self._taken += 1
        if is_new and parent is not None:
            self._parents = {*(self._parents or candidate.parents), parent}
        return True

    def _has(self, parent: int) -> bool:
        return parent in (self._candidate.parents if self._parents is None else self._parents)


def _reason(moved: Sequence[int], holder_of: Mapping[int, str], usable: Container[str], share: int) -> str:
    if not moved:
        return "all stay with their parents"
    orphans = sum(holder_of.get(slot) is None for slot in moved)
    gone = sum(holder_of.get(slot) is not None and holder_of[slot] not in usable for slot in moved)
    beyond = len(moved) - orphans - gone
    parts = [
        (beyond, f"beyond an even share of {share} a worker"),
        (orphans, "parent not held by any worker"),
        (gone, "parent's worker takes no new work"),
    ]
    return "; ".join(f"{count} replayed: {why}" for count, why in parts if count)


class CostModel:
    """Predicts in how many seconds a prompt would be done where its trajectories are assigned."""

    def __init__(self, plan: Plan, workload: Workload) -> None:
        """Sum up what remains from each segment on.

        Populations shrink on their way: a worker's part of a population is taken to shrink in step.
        """
        self._workload = workload
        fixed = 0.0
        per_row = 0.0
        fixed_from: list[float] = []
        per_row_from: list[float] = []
        following = plan.segments[-1].population
        for segment, load in zip(reversed(plan.segments), reversed(workload.segments), strict=True):
            fixed += load.batch_seconds
            per_row = load.row_seconds + per_row * following / segment.population
            following = segment.population
            fixed_from.append(fixed)
            per_row_from.append(per_row)
        self._fixed_from = tuple(reversed(fixed_from))
        self._per_row_from = tuple(reversed(per_row_from))

    def cost_of(
        self,
        worker_of: Mapping[int, str],
        *,
        segment_index: int,
        parent_of: Mapping[int, int],
        held: Mapping[str, Collection[int]],
        workers: Mapping[str, WorkerView],
        to_the_end: bool,
    ) -> float:
        """Return in how many seconds from now the last worker would be done.

        What each worker has to do already comes first; the slower it is, the longer everything takes.

        Args:
            worker_of: where slots go.
            parent_of: each slot's parent; empty in segment 0.
            held: parents that each worker has already; all others are rebuilt, each once.
            workers: at least those that are used.
            to_the_end: whether to predict the end of the prompt, or that of this segment.
        """
        rows: dict[str, int] = {}
        rebuilt: dict[str, set[int]] = {}
        for slot, worker_id in worker_of.items():
            rows[worker_id] = rows.get(worker_id, 0) + 1
            parent = parent_of.get(slot)
            if parent is not None and parent not in held[worker_id]:
                rebuilt.setdefault(worker_id, set()).add(parent)
        predicted = self._until_the_end if to_the_end else self._workload.seconds
        return max(
            workers[worker_id].load
            + workers[worker_id].slowdown * predicted(segment_index, count, len(rebuilt.get(worker_id, ())))
            for worker_id, count in rows.items()
        )

    def cheapest(
        self,
        assignments: Sequence[Assignment],
        *,
        segment_index: int,
        parent_of: Mapping[int, int],
        held: Mapping[str, Collection[int]],
        workers: Mapping[str, WorkerView],
    ) -> Assignment:
        """Return the assignment that is over first, of equals the one with fewer moves.

        Its reason says what it and the alternative were predicted to cost. Arguments as `cost_of`.
        """
        costs = [
            self.cost_of(
                assignment.worker_of,
                segment_index=segment_index,
                parent_of=parent_of,
                held=held,
                workers=workers,
                to_the_end=True,
            )
            for assignment in assignments
        ]
        options = list(zip(assignments, costs, strict=True))
        best, cost = min(options, key=lambda option: (option[1], option[0].moved))
        others = [option for option in options if option[0].worker_of != best.worker_of]
        if not others:
            return best
        if best.moved:
            other, other_cost = min(others, key=lambda option: (option[0].moved, option[1]))
        else:
            other, other_cost = min(others, key=lambda option: option[1])
        reason = f"{best.reason}; {cost:.3g} s expected, {other_cost:.3g} s if {other.moved} moved"
        return replace(best, reason=reason)

    def _until_the_end(self, segment_index: int, rows: int, replayed: int) -> float:
        return (
            self._fixed_from[segment_index]
            + rows * self._per_row_from[segment_index]
            + replayed * self._workload.segments[segment_index].replay_seconds
        )
