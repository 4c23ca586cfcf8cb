"""Random orders of leases, outcomes, losses, duplicates, rewrites: nothing is lost, nothing counts twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.prompts import make_prompts
from ttsvar_ray.leasing.ledger import MAX_HOLDERS, LeaseLedger, WholeChunk
from ttsvar_ray.results import PromptResult
from ttsvar_ray.types import Prompt

CELLS = ("a", "b", "c")


def done(prompt: Prompt) -> PromptResult:
    return PromptResult(prompt=prompt, images=(), trace=(), attempts=1, seconds=0.0)


class Model:
    """What cells hold by the rules of the protocol, beside the ledger under test."""

    def __init__(
        self, count: int, rows_per_chunk: int, committed: frozenset[int], draw: st.DataObject
    ) -> None:
        self.prompts = make_prompts(count)
        self.book = LeaseLedger(
            self.prompts, prompt_count=count, rows_per_chunk=rows_per_chunk, committed=committed
        )
        self.to_run = {p.row for p in self.prompts if p.row // rows_per_chunk not in committed}
        self.held: dict[str, set[int]] = {cell: set() for cell in CELLS}
        self.over: set[int] = set()
        self.seen: set[int] = set()
        self.whole: list[WholeChunk] = []
        self.written: list[int] = []
        self.draw = draw
        self.now = 0.0

    def take(self, cell: str, prompts: tuple[Prompt, ...]) -> None:
        for prompt in prompts:
            assert prompt.row in self.to_run - self.over
            assert prompt.row not in self.held[cell]
            self.held[cell].add(prompt.row)
            self.seen.add(prompt.row)

    def lease(self, cell: str, count: int) -> None:
        waiting = self.seen - self.over - set().union(*self.held.values())
        lease = self.book.lease(cell, count, now=self.now)
        self.take(cell, lease.prompts)
        rows = [prompt.row for prompt in lease.prompts]
        assert rows[: len(waiting)] == sorted(waiting)[:count], "what came back goes first"
        assert len(rows) == count or lease.is_last

    def lease_again(self, cell: str, count: int) -> None:
        for prompt in self.book.lease_again(cell, count, now=self.now, out_for=3.0):
            assert any(prompt.row in held for held in self.held.values())
            self.take(cell, (prompt,))
            assert sum(prompt.row in held for held in self.held.values()) <= MAX_HOLDERS

    def answer(self, cell: str, row: int) -> None:
        receipt = self.book.add(cell, done(self.prompts[row]))
        assert receipt.is_new == (row in self.seen - self.over)
        if not receipt.is_new:
            return
        assert set(receipt.withdraw_from) == {c for c in CELLS if c != cell and row in self.held[c]}
        for held in self.held.values():
            held.discard(row)
        self.over.add(row)
        if receipt.whole is not None:
            assert [o.prompt.row for o in receipt.whole.finished] == list(receipt.whole.rows)
            self.whole.append(receipt.whole)

    def lose(self, cell: str) -> None:
        alone = {r for r in self.held[cell] if not any(r in self.held[c] for c in CELLS if c != cell)}
        assert self.book.lose_cell(cell) == len(alone)
        self.held[cell] = set()

    def write(self) -> None:
        chunk = self.whole.pop()
        lost = self.draw.draw(st.sets(st.sampled_from(list(chunk.rows))))
        if lost:
            self.book.reopen(lost)
            self.over -= lost
        else:
            self.book.commit(chunk.chunk_index)
            self.written.append(chunk.chunk_index)

    def step(self) -> None:
        self.now += 1.0
        cell = self.draw.draw(st.sampled_from(CELLS))
        what = self.draw.draw(
            st.sampled_from(["lease", "again", "answer", "answer", "late", "lose", "write"])
        )
        if what == "lease":
            self.lease(cell, self.draw.draw(st.integers(1, 6)))
        elif what == "again":
            self.lease_again(cell, self.draw.draw(st.integers(1, 6)))
        elif what == "answer" and self.held[cell]:
            self.answer(cell, self.draw.draw(st.sampled_from(sorted(self.held[cell]))))
        elif what == "late" and self.seen:
            self.answer(cell, self.draw.draw(st.sampled_from(sorted(self.seen))))
        elif what == "lose":
            self.lose(cell)
        elif what == "write" and self.whole:
            self.write()

    def check(self) -> None:
        for cell, held in self.held.items():
            assert self.book.num_held(cell) == len(held)
        unread = self.to_run - self.seen
        queued = self.seen - self.over - set().union(*self.held.values())
        assert self.book.is_exhausted == (not unread and not queued)
        gone = {row for chunk in self.written for row in self.book.rows(chunk)}
        assert self.book.num_uncommitted == len(self.seen - gone)

    def settle(self) -> None:
        """Let everything go on without faults to its end."""
        while not self.book.is_done:
            self.lease("a", 3)
            for cell in CELLS:
                for row in sorted(self.held[cell]):
                    if row in self.held[cell]:
                        self.answer(cell, row)
            while self.whole:
                chunk = self.whole.pop()
                self.book.commit(chunk.chunk_index)
                self.written.append(chunk.chunk_index)


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(1, 20),
    rows_per_chunk=st.integers(1, 6),
    steps=st.integers(0, 40),
    data=st.data(),
)
def test_every_row_is_written_once_in_any_order_of_events(
    count: int, rows_per_chunk: int, steps: int, data: st.DataObject
) -> None:
    number = -(-count // rows_per_chunk)
    committed = frozenset(data.draw(st.sets(st.integers(0, number - 1))))
    model = Model(count, rows_per_chunk, committed, data)
    for _ in range(steps):
        model.step()
        model.check()
    model.settle()
    model.check()
    assert sorted(model.written) == [chunk for chunk in range(number) if chunk not in committed]
    assert model.book.num_uncommitted == 0
