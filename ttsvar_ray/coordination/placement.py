"""Which worker runs which trajectory: pure functions of counts, no state.

A trajectory stays with its parent, because going on costs nothing there, up to a share of the population;
what is beyond the share moves and is replayed from its parent's bits. How wide a share pays is the matter of
`migration`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from ttsvar_ray.coordination.settings import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that may take trajectories.

    Attributes:
        room: what it may take on, in units of its tariff.
        slot_price: what a trajectory costs it.
        parent_price: what a parent costs on top that is not there yet.
        parents: parents that are there, or paid for.
    """

    worker_id: str
    room: int
    slot_price: int = 1
    parent_price: int = 0
    parents: frozenset[int] = frozenset()

    def has_room_for(self, count: int) -> bool:
        """Return whether so many trajectories without parents fit."""
        return count * self.slot_price <= self.room


@dataclass(frozen=True, slots=True, kw_only=True)
class Seating:
    """A decision: the worker of each slot, how many slots left their parent's worker, and why."""

    worker_of: Mapping[int, str]
    moved: int
    reason: str


def effective_spread(spread: Spread, *, num_prompts: int, num_workers: int, rows: int) -> int:
    """Return how many workers one prompt is sharded over now.

    Args:
        spread: the setting.
        num_prompts: prompts live or waiting, this one included, at least 1.
        num_workers: workers that take new work.
        rows: trajectories to place, at least 1.

    Returns:
        1 to `rows`. For "auto": 1 while prompts are at least as many as workers, else an even share
        of the workers, rounded up so that none idles.
    """
    wanted = -(-num_workers // num_prompts) if spread == "auto" else spread
    return max(1, min(wanted, num_workers, rows))


def feasible_spread(rows: int, candidates: Sequence[Candidate], spread: int) -> int:
    """Return the widest spread of at most `spread` whose even shares fit, the first candidate included.

    Args:
        rows: trajectories to place.
        candidates: workers that may take them; the first one must get a share.
        spread: workers wished for.

    Returns:
        0 where not even one worker, the first, has room for everything.
    """
    for width in range(min(spread, rows, len(candidates)), 0, -1):
        share = -(-rows // width)
        roomy = sum(candidate.has_room_for(share) for candidate in candidates)
        if roomy >= width and candidates[0].has_room_for(share):
            return width
    return 0


def seat(
    slots: Sequence[int],
    *,
    parent_of: Mapping[int, int],
    home_of: Mapping[int, str],
    candidates: Sequence[Candidate],
    spread: int,
) -> Seating | None:
    """Place slots on workers.

    Args:
        slots: to place, ascending.
        parent_of: each slot's parent, empty in segment 0; siblings that move go together where room
            allows, so that their parent is replayed once.
        home_of: worker that holds the slot's parent, absent where no worker does.
        candidates: workers that may take slots, the preferred first.
        spread: workers to share the slots over, at least 1.

    Returns:
        A worker for every slot, never more on a worker than its room; None where no such places were
        found. Where prices are equal and parents free, that is where the rooms together are too small.
    """
    desks = {candidate.worker_id: _Desk(candidate) for candidate in candidates}
    share = -(-len(slots) // max(1, min(spread, len(desks), len(slots))))
    worker_of: dict[int, str] = {}
    surplus: list[int] = []
    for slot in slots:
        home = home_of.get(slot)
        if home is not None and home in desks and desks[home].take(parent_of.get(slot), most=share):
            worker_of[slot] = home
        else:
            surplus.append(slot)
    movers = deque(sorted(surplus, key=lambda slot: (parent_of.get(slot, -1), slot)))
    # Even shares first; where rooms are too small for that, whatever fits.
    for most in (share, len(slots)):
        for worker_id, desk in desks.items():
            while movers and desk.take(parent_of.get(movers[0]), most=most):
                worker_of[movers.popleft()] = worker_id
    if movers:
        return None
    moved = [slot for slot in slots if parent_of and worker_of[slot] != home_of.get(slot)]
    return Seating(
        worker_of={slot: worker_of[slot] for slot in slots},
        moved=len(moved),
        reason=_reason(moved, home_of, desks, share),
    )


def fitting(slots: Sequence[int], *, parent_of: Mapping[int, int], candidate: Candidate) -> tuple[int, ...]:
    """Return the longest beginning of `slots` that one worker has room for."""
    desk = _Desk(candidate)
    taken = itertools.takewhile(lambda slot: desk.take(parent_of.get(slot), most=len(slots)), slots)
    return tuple(taken)


class _Desk:
    """What a worker has left while slots are placed."""

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self._room = candidate.room
        self._parents: set[int] | None = None
        self._taken = 0

    def take(self, parent: int | None, *, most: int) -> bool:
        """Take one slot if there is room for it and its parent, and fewer than `most` were taken."""
        if self._taken >= most:
            return False
        candidate = self._candidate
        price = candidate.slot_price
        is_new = parent is not None and candidate.parent_price > 0 and not self._has(parent)
        if is_new:
            price += candidate.parent_price
        if price > self._room:
            return False
        self._room -= price
        self._taken += 1
        if is_new and parent is not None:
            self._parents = {*(self._parents or candidate.parents), parent}
        return True

    def _has(self, parent: int) -> bool:
        return parent in (self._candidate.parents if self._parents is None else self._parents)


def _reason(moved: Sequence[int], home_of: Mapping[int, str], desks: Container[str], share: int) -> str:
    if not moved:
        return "all stay with their parents"
    orphans = sum(home_of.get(slot) is None for slot in moved)
    gone = sum(home_of.get(slot) is not None and home_of[slot] not in desks for slot in moved)
    beyond = len(moved) - orphans - gone
    parts = [
        (beyond, f"beyond an even share of {share} a worker"),
        (orphans, "parent not held by any worker"),
        (gone, "parent's worker takes no new work"),
    ]
    return "; ".join(f"{count} replayed: {why}" for count, why in parts if count)
