"""Which prompts are out with which cell, which chunks are whole: the driver's bookkeeping, pure.

    read --lease--> held by a cell, or by two --add(outcome)--> whole chunk --commit--> gone
              ^          |                                          |
              '--queue --+- lose_cell                               |
                  ^--------------- reopen (lost images) ------------'

Invariants, in any order of calls:

* Every row of an uncommitted chunk is in exactly one of these places: not read, in the queue, held by one
  or two cells, or over.
* No cell is handed a row that it holds; a row is held twice only after `lease_again`.
* Of several outcomes of a row the first counts; the others are dropped and counted.
* A chunk is handed out for writing when, and only when, every row of it that is to run is over.

There is no clock: callers say what time it is, in seconds from any origin.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.types import Prompt

MAX_HOLDERS = 2
"""Cells that may hold one row at a time: its first, and one that tries to be faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeChunk:
    """A chunk whose prompts are all over; of `LeaseLedger.unfinished`, one of which some are.

    Attributes:
        rows: of the chunk in the prompt set. Where only some of them were to run, the others have no
            outcome here.
        finished, failed: outcomes in row order.
    """

    chunk_index: int
    rows: range
    finished: tuple[PromptResult, ...]
    failed: tuple[PromptFailure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Prompts for one cell.

    Attributes:
        prompts: without the caller's columns, which need not travel.
        is_last: nothing is left to lease now. Rows may still come back into the queue: of a cell that is
            lost, or of images that are.
    """

    prompts: tuple[Prompt, ...]
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Receipt:
    """What the ledger did with an outcome.

    Attributes:
        is_new: whether it counts; if not, the row was over already.
        whole: its chunk, if that is whole now.
        withdraw_from: other cells that hold the prompt and work on it in vain.
        leased_at: when the cell that brought it was handed the prompt; None if it was not.
    """

    is_new: bool
    whole: WholeChunk | None = None
    withdraw_from: tuple[str, ...] = ()
    leased_at: float | None = None


@dataclass(slots=True)
class _Row:
    """A row that was read and is not committed: in the queue while it has neither holders nor outcome.

    Attributes:
        holders: when each cell that works on it was handed it.
    """

    prompt: Prompt
    holders: dict[str, float] = field(default_factory=dict)
    outcome: PromptResult | PromptFailure | None = None


@dataclass(slots=True)
class _OpenChunk:
    to_run: tuple[int, ...]
    missing: int


class LeaseLedger:
    """Leases prompts in row order to cells and collects their outcomes by chunk."""

    def __init__(
        self,
        prompts: Iterable[Prompt],
        *,
        prompt_count: int,
        rows_per_chunk: int,
        committed: Collection[int],
        rows_to_run: Mapping[int, Collection[int]] | None = None,
        kept: Mapping[int, Collection[int]] | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        """Start.

        Args:
            prompts: all prompts, in row order; those that are not to run are passed over.
            rows_per_chunk: prompts in one chunk; the last one may have fewer.
            committed: chunks that are written already and do not run.
            rows_to_run: chunks of which these rows run and no others, even if they are committed.
            kept: rows of chunks that are not committed which an earlier session finished: they do not run.
            shard: (i, n): only every n-th chunk runs, from chunk i on; the others are another run's.
        """
        self._rows_per_chunk = rows_per_chunk
        self._prompt_count = prompt_count
        self._committed = frozenset(committed)
        self._shard_index, self._shard_count = shard
        self._rows_to_run = {chunk: frozenset(rows) for chunk, rows in (rows_to_run or {}).items()}
        for chunk, done in (kept or {}).items():
            left = frozenset(self.rows(chunk)).difference(done)
            # A chunk is written when the last of its rows is over: one is left to be that.
            self._rows_to_run[chunk] = left or frozenset({self.rows(chunk)[-1]})
        for chunk, rows in self._rows_to_run.items():
            strangers = sorted(rows.difference(self.rows(chunk)))
            if strangers:
                raise ValueError(f"rows_to_run[{chunk}]: expected rows of that chunk, got {strangers[0]}")
        self._source: Iterator[Prompt] = (prompt for prompt in prompts if self._is_to_run(prompt.row))
        self._next: Prompt | None = next(self._source, None)
        self._rows: dict[int, _Row] = {}
        self._open: dict[int, _OpenChunk] = {}
        self._queue: set[int] = set()
        # Rows that somebody holds, the one that was leased longest ago first.
        self._out: dict[int, float] = {}
        self._held: dict[str, set[int]] = {}
        self._late = 0

    @property
    def chunks(self) -> range:
        """The chunks that are this run's: of the whole prompt set, or of its shard."""
        return range(self._shard_index, -(-self._prompt_count // self._rows_per_chunk), self._shard_count)

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing is left to lease now."""
        return self._next is None and not self._queue

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to lease, to wait for, or to write."""
        return self._next is None and not self._open

    @property
    def num_uncommitted(self) -> int:
        """Prompts that were read and whose chunk is not committed: what the ledger's memory grows with."""
        return len(self._rows)

    @property
    def num_queued(self) -> int:
        """Prompts that came back and wait to be leased again."""
        return len(self._queue)

    @property
    def num_out(self) -> int:
        """Prompts that cells work on."""
        return len(self._out)

    @property
    def num_over(self) -> int:
        """Outcomes that wait for their chunk to be committed."""
        return len(self._rows) - len(self._out) - len(self._queue)

    @property
    def num_late(self) -> int:
        """Outcomes that were dropped because their row was over."""
        return self._late

    def num_held(self, cell_id: str) -> int:
        """Return how many prompts are out with a cell."""
        return len(self._held.get(cell_id, ()))

    def rows(self, chunk_index: int) -> range:
        """Return the rows of one chunk."""
        first = chunk_index * self._rows_per_chunk
        return range(first, min(first + self._rows_per_chunk, self._prompt_count))

    def lease(self, cell_id: str, count: int, *, now: float) -> Lease:
        """Hand a cell up to `count` prompts: those that came back first, then new ones."""
        rows = heapq.nsmallest(count, self._queue)
        self._queue.difference_update(rows)
        while self._next is not None and len(rows) < count:
            rows.append(self._read(self._next))
            self._next = next(self._source, None)
        return Lease(
            prompts=tuple(self._hand_out(row, cell_id, now) for row in rows), is_last=self.is_exhausted
        )

    def lease_again(self, cell_id: str, count: int, *, now: float, out_for: float) -> tuple[Prompt, ...]:
        """Hand a cell prompts that another one has had for too long; nothing while others are left.

        Args:
            cell_id: a cell that has nothing better to do.
            count: most prompts.
            out_for: seconds since its lease after which a prompt counts as straggling.

        Returns:
            The prompts, longest out first. Each is then held by two cells, and by no more.
        """
        if not self.is_exhausted:
            return ()
        rows: list[int] = []
        for row, since in self._out.items():
            if len(rows) == count or now - since < out_for:
                break
            holders = self._rows[row].holders
            if len(holders) < MAX_HOLDERS and cell_id not in holders:
                rows.append(row)
        return tuple(self._hand_out(row, cell_id, now) for row in rows)

    def add(self, cell_id: str, outcome: PromptResult | PromptFailure) -> _Receipt:
        """Take in what a cell made of a prompt."""
        number = outcome.prompt.row
        row = self._rows.get(number)
        if row is None or row.outcome is not None:
            self._late += 1
            return _Receipt(is_new=False)
        row.outcome = replace(outcome, prompt=row.prompt)
        leased_at = row.holders.get(cell_id)
        others = tuple(holder for holder in row.holders if holder != cell_id)
        for holder in row.holders:
            self._held[holder].discard(number)
        row.holders.clear()
        self._out.pop(number, None)
        self._queue.discard(number)
        chunk_index = number // self._rows_per_chunk
        chunk = self._open[chunk_index]
        chunk.missing -= 1
        return _Receipt(
            is_new=True,
            whole=None if chunk.missing else self._whole(chunk_index, chunk),
            withdraw_from=others,
            leased_at=leased_at,
        )

    def lose_cell(self, cell_id: str) -> int:
        """Take back what is out with a cell that is gone.

        Returns:
            How many prompts went back into the queue; those that another cell holds, too, did not.
        """
        returned = 0
        for number in sorted(self._held.pop(cell_id, ())):
            row = self._rows[number]
            del row.holders[cell_id]
            if not row.holders:
                del self._out[number]
                self._queue.add(number)
                returned += 1
        return returned

    def commit(self, chunk_index: int) -> None:
        """Forget a chunk that is written."""
        for row in self._open.pop(chunk_index).to_run:
            del self._rows[row]

    def reopen(self, rows: Collection[int]) -> None:
        """Put rows of a whole chunk, whose outcomes cannot be written, back into the queue."""
        for number in rows:
            row = self._rows[number]
            assert row.outcome is not None, f"row {number} is not over"
            row.outcome = None
            self._open[number // self._rows_per_chunk].missing += 1
            self._queue.add(number)

    def unfinished(self) -> Iterator[WholeChunk]:
        """Yield what is finished of chunks that are not whole; their failures are left out."""
        for chunk_index, chunk in self._open.items():
            found = self._whole(chunk_index, chunk)
            if chunk.missing and found.finished:
                yield replace(found, failed=())

    def _is_to_run(self, row: int) -> bool:
        chunk = row // self._rows_per_chunk
        if chunk % self._shard_count != self._shard_index:
            return False
        rows = self._rows_to_run.get(chunk)
        return row in rows if rows is not None else chunk not in self._committed

    def _read(self, prompt: Prompt) -> int:
        """Open a row that nobody has had before."""
        row = prompt.row
        self._rows[row] = _Row(prompt=prompt)
        chunk_index = row // self._rows_per_chunk
        if chunk_index not in self._open:
            rows = self.rows(chunk_index)
            to_run = tuple(sorted(self._rows_to_run.get(chunk_index, rows)))
            self._open[chunk_index] = _OpenChunk(to_run=to_run, missing=len(to_run))
        return row

    def _hand_out(self, number: int, cell_id: str, now: float) -> Prompt:
        row = self._rows[number]
        row.holders[cell_id] = now
        self._held.setdefault(cell_id, set()).add(number)
        self._out.pop(number, None)
        self._out[number] = now
        return replace(row.prompt, columns=MappingProxyType({}))

    def _whole(self, chunk_index: int, chunk: _OpenChunk) -> WholeChunk:
        ordered = [self._rows[row].outcome for row in chunk.to_run if row in self._rows]
        return WholeChunk(
            chunk_index=chunk_index,
            rows=self.rows(chunk_index),
            finished=tuple(o for o in ordered if isinstance(o, PromptResult)),
            failed=tuple(o for o in ordered if isinstance(o, PromptFailure)),
        )
