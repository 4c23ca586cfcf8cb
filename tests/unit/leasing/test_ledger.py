"""The ledger, case by case; `tests/property/test_leasing_properties.py` tries random orders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from tests.support.prompts import make_prompts
from ttsvar_ray.leasing.ledger import LeaseLedger
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.types import Prompt


def ledger(
    count: int,
    rows_per_chunk: int,
    committed: tuple[int, ...] = (),
    rows_to_run: Mapping[int, tuple[int, ...]] | None = None,
) -> LeaseLedger:
    prompts = [replace(p, columns=MappingProxyType({"tag": p.row})) for p in make_prompts(count)]
    return LeaseLedger(
        prompts,
        prompt_count=count,
        rows_per_chunk=rows_per_chunk,
        committed=frozenset(committed),
        rows_to_run=rows_to_run,
    )


def done(prompt: Prompt) -> PromptResult:
    return PromptResult(prompt=prompt, images=(), trace=(), attempts=1, seconds=0.0)


def rows(prompts: tuple[Prompt, ...]) -> list[int]:
    return [prompt.row for prompt in prompts]


def test_prompts_are_leased_in_order_past_what_is_committed() -> None:
    book = ledger(9, 2, committed=(0, 2))
    lease = book.lease("a", 3, now=0.0)
    assert rows(lease.prompts) == [2, 3, 6]
    assert not lease.is_last
    lease = book.lease("b", 9, now=0.0)
    assert rows(lease.prompts) == [7, 8]
    assert lease.is_last and book.is_exhausted and not book.is_done
    assert (book.num_held("a"), book.num_held("b")) == (3, 2)
    assert list(book.rows(4)) == [8]


def test_a_shard_is_every_so_many_chunks_and_no_other_row() -> None:
    shards = [
        LeaseLedger(
            make_prompts(9),
            prompt_count=9,
            rows_per_chunk=2,
            committed={3},
            rows_to_run={1: (2,)},
            shard=(i, 3),
        )
        for i in range(3)
    ]
    assert [list(book.chunks) for book in shards] == [[0, 3], [1, 4], [2]]
    assert [rows(book.lease("a", 9, now=0.0).prompts) for book in shards] == [[0, 1], [2, 8], [4, 5]]
    beyond = LeaseLedger([], prompt_count=9, rows_per_chunk=2, committed=(), shard=(6, 8))
    assert not beyond.chunks and beyond.is_done


def test_columns_stay_here_and_come_back_with_the_outcome() -> None:
    book = ledger(2, 2)
    prompts = book.lease("a", 5, now=0.0).prompts
    assert [dict(p.columns) for p in prompts] == [{}, {}]
    assert book.add("a", PromptFailure(prompt=prompts[1], attempts=1, errors=("x",))).whole is None
    whole = book.add("a", done(prompts[0])).whole
    assert whole is not None
    assert dict(whole.finished[0].prompt.columns) == {"tag": 0}
    assert dict(whole.failed[0].prompt.columns) == {"tag": 1}


def test_rows_that_cannot_be_written_are_leased_again() -> None:
    book = ledger(3, 3)
    for prompt in book.lease("a", 3, now=0.0).prompts:
        whole = book.add("a", done(prompt)).whole
    assert whole is not None and book.is_exhausted
    book.reopen([2, 0])
    assert not book.is_exhausted
    again = book.lease("b", 5, now=1.0)
    assert rows(again.prompts) == [0, 2] and again.is_last
    assert book.add("b", done(again.prompts[1])).whole is None
    assert book.add("b", done(again.prompts[0])).whole is not None
    book.commit(0)
    assert book.is_done


def test_what_a_lost_cell_had_is_leased_before_anything_new() -> None:
    book = ledger(8, 4)
    mine = book.lease("a", 3, now=0.0).prompts
    other = book.lease("b", 2, now=0.0).prompts
    book.add("a", done(mine[1]))
    assert book.lose_cell("a") == 2
    assert book.lose_cell("a") == 0
    assert book.num_held("a") == 0
    again = book.lease("b", 3, now=1.0)
    assert rows(again.prompts) == [0, 2, 5]
    assert rows(other) == [3, 4]
    assert not again.is_last


def test_the_last_lease_may_be_followed_by_what_comes_back() -> None:
    book = ledger(2, 2)
    assert book.lease("a", 2, now=0.0).is_last
    book.lose_cell("a")
    assert not book.is_exhausted
    assert rows(book.lease("b", 1, now=1.0).prompts) == [0]


def test_stragglers_are_leased_once_more_and_the_first_outcome_counts() -> None:
    book = ledger(4, 4)
    slow = book.lease("a", 3, now=0.0).prompts
    book.lease("b", 1, now=5.0)
    # Not to the cell that has them, not before their time, not more than asked for.
    assert book.lease_again("a", 9, now=100.0, out_for=200.0) == ()
    assert rows(book.lease_again("b", 2, now=10.0, out_for=10.0)) == [0, 1]
    assert rows(book.lease_again("b", 9, now=10.0, out_for=10.0)) == [2]
    assert book.lease_again("c", 9, now=1000.0, out_for=10.0) != ()
    assert all(3 not in rows(book.lease_again("b", 9, now=1000.0, out_for=1.0)) for _ in range(2))
    receipt = book.add("b", done(slow[1]))
    assert receipt.is_new and receipt.withdraw_from == ("a",) and receipt.leased_at == 10.0
    late = book.add("a", done(slow[1]))
    assert not late.is_new and late.whole is None and book.num_late == 1
    assert book.add("a", done(slow[0])).withdraw_from == ("b",)


def test_a_row_is_never_held_three_times() -> None:
    book = ledger(1, 1)
    book.lease("a", 1, now=0.0)
    assert rows(book.lease_again("b", 1, now=50.0, out_for=10.0)) == [0]
    assert book.lease_again("c", 1, now=500.0, out_for=10.0) == ()
    assert book.lose_cell("b") == 0
    assert rows(book.lease_again("c", 1, now=500.0, out_for=10.0)) == [0]


def test_nothing_is_leased_again_while_something_is_left() -> None:
    book = ledger(3, 3)
    book.lease("a", 2, now=0.0)
    assert book.lease_again("b", 1, now=1000.0, out_for=1.0) == ()


def test_outcomes_after_the_commit_are_dropped() -> None:
    book = ledger(1, 1)
    (prompt,) = book.lease("a", 1, now=0.0).prompts
    assert book.add("a", done(prompt)).whole is not None
    book.commit(0)
    assert not book.add("b", done(prompt)).is_new
    assert book.num_late == 1


def test_an_outcome_of_a_cell_that_was_believed_lost_counts() -> None:
    book = ledger(2, 2)
    first, _ = book.lease("a", 2, now=0.0).prompts
    book.lose_cell("a")
    receipt = book.add("a", done(first))
    assert receipt.is_new and receipt.leased_at is None
    assert rows(book.lease("b", 9, now=1.0).prompts) == [1]


def test_only_the_named_rows_of_a_chunk_run() -> None:
    book = ledger(7, 3, committed=(0, 1), rows_to_run={1: (5, 3)})
    lease = book.lease("a", 9, now=0.0)
    assert rows(lease.prompts) == [3, 5, 6]
    assert book.add("a", done(lease.prompts[0])).whole is None
    whole = book.add("a", done(lease.prompts[1])).whole
    assert whole is not None and list(whole.rows) == [3, 4, 5]
    assert rows(tuple(o.prompt for o in whole.finished)) == [3, 5]
    book.commit(1)
    book.add("a", done(lease.prompts[2]))
    book.commit(2)
    assert book.is_done


def test_no_rows_to_run_is_nothing_to_do() -> None:
    assert ledger(4, 2, committed=(0, 1), rows_to_run={0: ()}).is_done


def test_rows_to_run_belong_to_their_chunk() -> None:
    with pytest.raises(ValueError, match=r"rows_to_run\[1\]: expected rows of that chunk, got 2"):
        ledger(6, 3, rows_to_run={1: (2, 4)})
    book = ledger(6, 3, committed=(0, 1), rows_to_run={1: (3, 5)})
    assert rows(book.lease("a", 9, now=0.0).prompts) == [3, 5], "a chunk's first and last row are its own"


def test_what_was_kept_of_a_chunk_does_not_run_again() -> None:
    book = LeaseLedger(
        make_prompts(7), prompt_count=7, rows_per_chunk=3, committed={0}, kept={1: {3, 5}, 2: {6}}
    )
    lease = book.lease("a", 9, now=0.0)
    assert rows(lease.prompts) == [4, 6], "of a chunk that is all kept one row is left to finish it"
    whole = book.add("a", done(lease.prompts[0])).whole
    assert whole is not None and (list(whole.rows), len(whole.finished)) == ([3, 4, 5], 1)


def test_what_is_finished_of_unfinished_chunks() -> None:
    book = ledger(9, 3, committed=(2,))
    lease = book.lease("a", 5, now=0.0)
    assert list(book.unfinished()) == []
    for prompt in lease.prompts[:3]:
        book.add("a", done(prompt))
    book.add("a", PromptFailure(prompt=lease.prompts[3], attempts=1, errors=("no",)))
    assert list(book.unfinished()) == [], "chunk 0 is being written, and a failure may try again"
    book.add("a", done(lease.prompts[4]))
    (chunk,) = book.unfinished()
    assert (chunk.chunk_index, list(chunk.rows), chunk.failed) == (1, [3, 4, 5], ())
    assert rows(tuple(o.prompt for o in chunk.finished)) == [4]
