"""The ledger: every prompt is leased once, and a chunk is handed out when, and only when, it is whole."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.prompts import make_prompts
from ttsvar_ray.cluster.chunks import ChunkLedger
from ttsvar_ray.coordination.messages import PromptFailure, PromptResult
from ttsvar_ray.types import Prompt


def ledger(count: int, rows_per_chunk: int, committed: tuple[int, ...] = ()) -> ChunkLedger:
    prompts = [replace(p, columns=MappingProxyType({"tag": p.row})) for p in make_prompts(count)]
    return ChunkLedger(
        prompts, prompt_count=count, rows_per_chunk=rows_per_chunk, committed=frozenset(committed)
    )


def done(prompt: Prompt) -> PromptResult:
    return PromptResult(prompt=prompt, images=(), trace=(), attempts=1, seconds=0.0)


@given(
    count=st.integers(1, 40),
    rows_per_chunk=st.integers(1, 9),
    asked=st.lists(st.integers(1, 7), min_size=1),
    data=st.data(),
)
def test_every_prompt_is_leased_once_and_every_chunk_comes_out_whole(
    count: int, rows_per_chunk: int, asked: list[int], data: st.DataObject
) -> None:
    number = -(-count // rows_per_chunk)
    committed = tuple(sorted(data.draw(st.sets(st.integers(0, number - 1)))))
    book = ledger(count, rows_per_chunk, committed)
    leased: list[Prompt] = []
    is_last = book.is_exhausted
    turn = 0
    while not is_last:
        taken, is_last = book.take(asked[turn % len(asked)])
        assert taken
        leased += taken
        turn += 1
    expected = [row for row in range(count) if row // rows_per_chunk not in committed]
    assert [p.row for p in leased] == expected
    assert book.num_uncommitted == len(expected)
    chunks = []
    for prompt in data.draw(st.permutations(leased)):
        chunk = book.add(done(prompt))
        if chunk is not None:
            chunks.append(chunk)
            assert (
                [o.prompt.row for o in chunk.finished]
                == list(chunk.rows)
                == list(book.rows(chunk.chunk_index))
            )
            assert not book.is_done
            book.commit(chunk.chunk_index)
    assert sorted(c.chunk_index for c in chunks) == [c for c in range(number) if c not in committed]
    assert book.is_done
    assert book.num_uncommitted == 0


def test_columns_stay_here_and_come_back_with_the_outcome() -> None:
    book = ledger(2, 2)
    prompts, is_last = book.take(5)
    assert is_last
    assert [dict(p.columns) for p in prompts] == [{}, {}]
    assert book.add(PromptFailure(prompt=prompts[1], attempts=1, errors=("x",))) is None
    chunk = book.add(done(prompts[0]))
    assert chunk is not None
    assert dict(chunk.finished[0].prompt.columns) == {"tag": 0}
    assert dict(chunk.failed[0].prompt.columns) == {"tag": 1}


def test_rows_that_cannot_be_written_are_leased_again() -> None:
    book = ledger(3, 3)
    prompts, _ = book.take(3)
    for prompt in prompts:
        chunk = book.add(done(prompt))
    assert chunk is not None
    again = book.reopen([2, 0])
    assert [p.row for p in again] == [0, 2]
    assert book.add(done(again[1])) is None
    assert book.add(done(again[0])) is not None
    book.commit(0)
    assert book.is_done


def test_an_outcome_that_comes_twice_is_a_bug() -> None:
    book = ledger(2, 2)
    prompts, _ = book.take(2)
    book.add(done(prompts[0]))
    with pytest.raises(AssertionError, match="twice"):
        book.add(done(prompts[0]))
