"""Which worker runs which trajectory: pure functions of counts, no state.

The simple policy: a trajectory stays with its parent, because going on costs nothing there, up to an
even share of the population; what is beyond the share moves and is replayed from its parent's bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ttsvar_ray.coordination.settings import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that may take trajectories; `room` is how many more it may run or hold."""

    worker_id: str
    room: int


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
        roomy = sum(candidate.room >= share for candidate in candidates)
        if roomy >= width and candidates[0].room >= share:
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
        A worker for every slot, never more on a worker than its room; None where the room of all
        candidates together is too small.
    """
    room = {candidate.worker_id: candidate.room for candidate in candidates}
    if sum(max(0, free) for free in room.values()) < len(slots):
        return None
    share = -(-len(slots) // max(1, min(spread, len(room), len(slots))))
    taken = dict.fromkeys(room, 0)
    worker_of: dict[int, str] = {}
    surplus: list[int] = []
    for slot in slots:
        home = home_of.get(slot)
        if home in taken and taken[home] < min(share, room[home]):
            worker_of[slot] = home
            taken[home] += 1
        else:
            surplus.append(slot)
    movers = sorted(surplus, key=lambda slot: (parent_of.get(slot, -1), slot))
    # Even shares first; where rooms are too small for that, whatever fits.
    for most in (share, len(slots)):
        for worker_id, free in room.items():
            while movers and taken[worker_id] < min(most, free):
                worker_of[movers.pop(0)] = worker_id
                taken[worker_id] += 1
    assert not movers, "the rooms add up, so everything is seated"
    moved = [slot for slot in slots if parent_of and worker_of[slot] != home_of.get(slot)]
    return Seating(
        worker_of={slot: worker_of[slot] for slot in slots},
        moved=len(moved),
        reason=_reason(moved, home_of, room, share),
    )


def _reason(moved: Sequence[int], home_of: Mapping[int, str], room: Mapping[str, int], share: int) -> str:
    if not moved:
        return "all stay with their parents"
    orphans = sum(home_of.get(slot) is None for slot in moved)
    gone = sum(home_of.get(slot) is not None and home_of[slot] not in room for slot in moved)
    beyond = len(moved) - orphans - gone
    parts = [
        (beyond, f"beyond an even share of {share} a worker"),
        (orphans, "parent not held by any worker"),
        (gone, "parent's worker takes no new work"),
    ]
    return "; ".join(f"{count} replayed: {why}" for count, why in parts if count)
