"""Placement: which worker runs which trajectory."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsvar_ray.coordination.placement import (
    Assignment,
    Candidate,
    assign,
    effective_spread,
    feasible_spread,
    fitting,
)
from ttsvar_ray.coordination.settings import Spread


def candidates(**memory: int) -> list[Candidate]:
    return [Candidate(worker_id=name, free=free) for name, free in memory.items()]


def place(
    parents: list[int], holder: dict[int, str], spread: int, workers: list[Candidate]
) -> Assignment | None:
    """Assign one slot per parent; `holder` says where each parent is."""
    holder_of = {slot: holder[parent] for slot, parent in enumerate(parents) if parent in holder}
    return assign(
        range(len(parents)),
        parent_of=dict(enumerate(parents)),
        holder_of=holder_of,
        candidates=workers,
        spread=spread,
    )


@pytest.mark.parametrize(
    ("spread", "num_prompts", "num_workers", "rows", "expected"),
    [
        ("auto", 8, 8, 8, 1),
        ("auto", 100, 8, 8, 1),
        ("auto", 7, 8, 8, 2),
        ("auto", 3, 8, 8, 3),
        ("auto", 1, 8, 8, 8),
        ("auto", 1, 64, 8, 8),
        (1, 1, 8, 8, 1),
        (3, 100, 8, 8, 3),
        (3, 100, 2, 8, 2),
        (4, 1, 8, 2, 2),
    ],
)
def test_effective_spread(
    spread: Spread, num_prompts: int, num_workers: int, rows: int, expected: int
) -> None:
    found = effective_spread(spread, num_prompts=num_prompts, num_workers=num_workers, rows=rows)
    assert found == expected


def test_survivors_stay_with_their_parents_up_to_an_even_share() -> None:
    assignment = place([0, 0, 1, 2, 3, 3], {0: "a", 1: "a", 2: "b", 3: "b"}, 2, candidates(a=9, b=9))

    assert assignment is not None
    assert list(assignment.worker_of.values()) == ["a", "a", "a", "b", "b", "b"]
    assert assignment.moved == 0
    assert assignment.reason == "all stay with their parents"


def test_the_surplus_moves_and_siblings_move_together() -> None:
    parents = [0, 1, 2, 1, 2, 1, 2, 3]
    holder = dict.fromkeys(range(4), "a")
    assignment = place(parents, holder, 4, candidates(a=9, b=9, c=9, d=9))

    assert assignment is not None
    assert Counter(assignment.worker_of.values()) == {"a": 2, "b": 2, "c": 2, "d": 2}
    assert assignment.moved == 6
    assert assignment.reason == "6 replayed: beyond an even share of 2 a worker"
    replays = {(worker, parents[slot]) for slot, worker in assignment.worker_of.items() if worker != "a"}
    assert sorted(parent for _, parent in replays) == [1, 2, 2, 3], "only parent 2 is replayed twice"


def test_orphans_and_children_of_a_leaving_worker_are_replayed_elsewhere() -> None:
    assignment = place([0, 1, 2], {0: "gone", 1: "a"}, 1, candidates(a=9))

    assert assignment is not None
    assert set(assignment.worker_of.values()) == {"a"}
    assert assignment.moved == 2
    assert assignment.reason == (
        "1 replayed: parent not held by any worker; 1 replayed: parent's worker takes no new work"
    )


def test_little_memory_makes_shares_uneven_before_anything_is_refused() -> None:
    assignment = place([0] * 6, {}, 2, candidates(a=1, b=4, c=1))
    assert assignment is not None
    assert Counter(assignment.worker_of.values()) == {"a": 1, "b": 4, "c": 1}
    assert place([0] * 7, {}, 2, candidates(a=1, b=4, c=1)) is None


def test_feasible_spread_narrows_until_the_shares_fit_and_the_first_takes_part() -> None:
    assert feasible_spread(8, candidates(a=8, b=8, c=8), 2) == 2
    assert feasible_spread(8, candidates(a=8, b=3, c=3), 3) == 3
    assert feasible_spread(8, candidates(a=8, b=3, c=2), 3) == 1
    assert feasible_spread(8, candidates(a=4, b=3), 2) == 0
    assert feasible_spread(8, candidates(a=2, b=8, c=8), 2) == 0


@given(
    parents=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    holders=st.dictionaries(st.integers(0, 5), st.sampled_from("abcdx")),
    memory=st.dictionaries(st.sampled_from("abcd"), st.integers(0, 12)),
    spread=st.integers(1, 6),
)
def test_every_slot_is_assigned_within_memory_or_none_is(
    parents: list[int], holders: dict[int, str], memory: dict[str, int], spread: int
) -> None:
    assignment = place(parents, holders, spread, candidates(**memory))

    if sum(memory.values()) < len(parents):
        assert assignment is None
        return
    assert assignment is not None
    assert list(assignment.worker_of) == list(range(len(parents)))
    taken = Counter(assignment.worker_of.values())
    assert all(taken[worker] <= memory[worker] for worker in taken)
    moved = sum(holders.get(parents[slot]) != worker for slot, worker in assignment.worker_of.items())
    assert assignment.moved == moved
    if all(free >= len(parents) for free in memory.values()):
        share = -(-len(parents) // min(spread, len(memory), len(parents)))
        assert max(taken.values()) <= share


@given(
    parents=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    held=st.dictionaries(st.sampled_from("abc"), st.frozensets(st.integers(0, 5)), min_size=1),
    memory=st.lists(st.integers(0, 60), min_size=3, max_size=3),
    slot_memory=st.integers(0, 6),
    parent_memory=st.integers(0, 6),
    spread=st.integers(1, 4),
)
def test_what_is_assigned_has_memory_and_so_has_each_missing_parent_once(
    parents: list[int],
    held: dict[str, frozenset[int]],
    memory: list[int],
    slot_memory: int,
    parent_memory: int,
    spread: int,
) -> None:
    workers = [
        Candidate(
            worker_id=name,
            free=free,
            slot_memory=slot_memory,
            parent_memory=parent_memory,
            parents=held.get(name, frozenset()),
        )
        for name, free in zip("abc", memory, strict=True)
    ]
    parent_of = dict(enumerate(parents))
    holder_of = {slot: w.worker_id for slot, p in parent_of.items() for w in workers if p in w.parents}

    assignment = assign(
        range(len(parents)), parent_of=parent_of, holder_of=holder_of, candidates=workers, spread=spread
    )

    for worker in workers:
        slots = [
            s for s, name in (assignment.worker_of.items() if assignment else ()) if name == worker.worker_id
        ]
        rebuilt = {parents[slot] for slot in slots} - worker.parents
        assert slot_memory * len(slots) + parent_memory * len(rebuilt) <= worker.free
        alone = fitting(range(len(parents)), parent_of=parent_of, candidate=worker)
        missing = {parents[slot] for slot in alone} - worker.parents
        assert slot_memory * len(alone) + parent_memory * len(missing) <= worker.free
        if len(alone) == len(parents):
            assert assignment is not None, "one worker has memory for all"
