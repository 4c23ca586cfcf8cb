"""Backlog: what waits on a worker and what runs next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ttsvar_ray.coordination.batching import Backlog


def take(backlog: Backlog, rows: int, *, is_idle: bool) -> dict[str, tuple[int, ...]]:
    """Take a batch where that many rows fill one in every segment."""
    segment_index, batch = backlog.next_batch([rows] * 4, is_idle=is_idle)
    backlog.take(segment_index, batch)
    return batch


def test_the_furthest_segment_goes_first_across_prompts() -> None:
    backlog = Backlog()
    backlog.push("a", 0, [0, 1], alone=False)
    backlog.push("b", 2, [3], alone=False)
    backlog.push("c", 2, [0, 1], alone=False)

    first = take(backlog, 8, is_idle=True)
    second = take(backlog, 8, is_idle=False)

    assert list(first.items()) == [("b", (3,)), ("c", (0, 1))]
    assert second == {"a": (0, 1)}
    assert not backlog


def test_a_prompt_that_fits_a_batch_is_never_divided() -> None:
    backlog = Backlog()
    backlog.push("a", 0, range(3), alone=False)
    backlog.push("b", 0, range(3), alone=False)
    backlog.push("c", 0, range(1), alone=False)

    assert list(take(backlog, 4, is_idle=False)) == ["a", "c"]
    assert list(take(backlog, 4, is_idle=False)) == ["b"]


def test_a_prompt_larger_than_a_batch_is_divided_into_full_batches() -> None:
    backlog = Backlog()
    backlog.push("a", 1, range(7), alone=False)

    sizes = [sum(map(len, take(backlog, 3, is_idle=False).values())) for _ in range(3)]

    assert sizes == [3, 3, 1]


def test_what_runs_alone_waits_for_an_idle_worker_and_holds_back_the_rest() -> None:
    backlog = Backlog()
    backlog.push("suspect", 1, [0, 1], alone=True)
    backlog.push("other", 3, [0], alone=False)

    assert backlog.wants_alone
    assert take(backlog, 8, is_idle=False) == {}
    assert take(backlog, 8, is_idle=True) == {"suspect": (0, 1)}
    assert take(backlog, 8, is_idle=False) == {"other": (0,)}


def test_an_idle_worker_starts_something_new_only_where_nothing_further_waits() -> None:
    backlog = Backlog()
    assert backlog.rows_missing([8] * 4, is_idle=True) == 8
    backlog.push("a", 0, range(5), alone=False)
    assert backlog.rows_missing([8] * 4, is_idle=True) == 3
    backlog.push("b", 1, [0], alone=False)
    assert backlog.rows_missing([8] * 4, is_idle=True) == 0


def test_a_busy_worker_lets_part_of_a_batch_wait_for_company() -> None:
    backlog = Backlog()
    backlog.push("a", 3, range(5), alone=False)
    assert backlog.rows_missing([8] * 4, is_idle=False) == 8
    backlog.push("b", 3, range(3), alone=False)
    assert backlog.rows_missing([8] * 4, is_idle=False) == 0


def test_a_full_batch_goes_before_a_further_one_that_is_not_full() -> None:
    backlog = Backlog()
    backlog.push("a", 3, range(2), alone=False)
    backlog.push("b", 1, range(6), alone=False)
    backlog.push("c", 2, range(4), alone=False)

    assert list(take(backlog, 6, is_idle=True)) == ["b"]
    assert list(take(backlog, 6, is_idle=False)) == ["c"], "the fullest"
    backlog.push("d", 2, range(4), alone=False)
    assert list(take(backlog, 6, is_idle=True)) == ["a"], "the furthest"


def test_a_batch_is_full_by_its_own_segment_and_no_larger_than_the_memory_of_now() -> None:
    backlog = Backlog()
    backlog.push("early", 0, range(6), alone=False)
    backlog.push("a", 3, [0], alone=False)
    backlog.push("b", 3, [0, 1], alone=False)
    limits = [8, 8, 8, 2]

    for prompt_key in "ab":
        batch = backlog.next_batch(limits, is_idle=False, fits=lambda segment: 1)
        assert batch == (3, {prompt_key: (0,)})
        backlog.take(*batch)
    assert dict(backlog.rows_by_segment()) == {0: 6, 3: 1}
    assert backlog.next_batch(limits, is_idle=False) == (0, {"early": tuple(range(6))})
    assert backlog.num_rows == 7, "to look takes nothing"


def test_discard_returns_what_waited_alone_and_in_company() -> None:
    backlog = Backlog()
    backlog.push("a", 1, [4, 2], alone=False)
    backlog.push("a", 1, [1], alone=True)
    backlog.push("b", 1, [0], alone=False)

    assert backlog.discard("a") == [1, 2, 4]
    assert backlog.discard("a") == []
    assert backlog.num_rows == 1


@given(
    waiting=st.dictionaries(
        st.sampled_from("abcdefgh"),
        st.tuples(st.integers(0, 3), st.integers(1, 9), st.booleans()),
    ),
    rows=st.integers(1, 10),
    is_idle=st.booleans(),
)
def test_everything_is_taken_once_within_the_limit(
    waiting: dict[str, tuple[int, int, bool]], rows: int, is_idle: bool
) -> None:
    backlog = Backlog()
    expected = []
    for key, (segment_index, count, alone) in waiting.items():
        backlog.push(key, segment_index, range(count), alone=alone)
        expected += [(key, slot) for slot in range(count)]
    taken = []
    while backlog:
        batch = take(backlog, rows, is_idle=is_idle or backlog.wants_alone)
        assert 1 <= sum(map(len, batch.values())) <= rows
        assert len({waiting[key][0] for key in batch}) == 1
        taken += [(key, slot) for key, slots in batch.items() for slot in slots]
    assert sorted(taken) == sorted(expected)
