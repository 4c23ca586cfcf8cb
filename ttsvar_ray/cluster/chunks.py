"""Which prompts are out, which chunks are whole: bookkeeping of the driver, no ray.

    read --take(count)--> leased --add(outcome)--> whole chunk --committed--> gone
                             ^                         |
                             '------ lost rows --------'

Invariant: every row of an uncommitted chunk is in exactly one of these places, and a chunk is handed out
for writing only when it has an outcome for each of its rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ttsvar_ray.coordination.messages import PromptFailure, PromptResult
from ttsvar_ray.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeChunk:
    """A chunk whose prompts are all over."""

    chunk_index: int
    rows: range
    finished: tuple[PromptResult, ...]
    failed: tuple[PromptFailure, ...]


@dataclass(slots=True)
class _OpenChunk:
    rows: range
    outcomes: dict[int, PromptResult | PromptFailure] = field(default_factory=dict)


class ChunkLedger:
    """Leases prompts in order and collects their outcomes by chunk."""

    def __init__(
        self, prompts: Iterable[Prompt], *, prompt_count: int, rows_per_chunk: int, committed: Collection[int]
    ) -> None:
        """Start.

        Args:
            prompts: all prompts, in row order; those of committed chunks are passed over.
            prompt_count: how many there are.
            rows_per_chunk: prompts in one chunk; the last one may have fewer.
            committed: chunks that are written already.
        """
        self._rows_per_chunk = rows_per_chunk
        self._prompt_count = prompt_count
        self._committed = frozenset(committed)
        self._source: Iterator[Prompt] = (
            prompt for prompt in prompts if prompt.row // rows_per_chunk not in self._committed
        )
        self._next: Prompt | None = next(self._source, None)
        self._leased: dict[int, Prompt] = {}
        self._open: dict[int, _OpenChunk] = {}

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole prompt set."""
        return -(-self._prompt_count // self._rows_per_chunk)

    @property
    def is_exhausted(self) -> bool:
        """Whether every prompt has been leased."""
        return self._next is None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to lease, to wait for, or to write."""
        return self.is_exhausted and not self._open

    @property
    def num_uncommitted(self) -> int:
        """Leased prompts whose chunk is not committed."""
        return len(self._leased)

    def rows(self, chunk_index: int) -> range:
        """Return the rows of one chunk."""
        first = chunk_index * self._rows_per_chunk
        return range(first, min(first + self._rows_per_chunk, self._prompt_count))

    def take(self, count: int) -> tuple[list[Prompt], bool]:
        """Lease up to `count` prompts.

        Returns:
            The prompts without the caller's columns, which need not travel, and whether no more follow.
        """
        taken: list[Prompt] = []
        while self._next is not None and len(taken) < count:
            prompt = self._next
            self._leased[prompt.row] = prompt
            self._open.setdefault(
                prompt.row // self._rows_per_chunk,
                _OpenChunk(rows=self.rows(prompt.row // self._rows_per_chunk)),
            )
            taken.append(_without_columns(prompt))
            self._next = next(self._source, None)
        return taken, self._next is None

    def add(self, outcome: PromptResult | PromptFailure) -> WholeChunk | None:
        """Take in the outcome of a leased prompt; return its chunk if that is whole now."""
        row = outcome.prompt.row
        chunk_index = row // self._rows_per_chunk
        chunk = self._open[chunk_index]
        assert row not in chunk.outcomes, f"row {row} was emitted twice"
        chunk.outcomes[row] = replace(outcome, prompt=self._leased[row])
        if len(chunk.outcomes) < len(chunk.rows):
            return None
        ordered = [chunk.outcomes[r] for r in chunk.rows]
        return WholeChunk(
            chunk_index=chunk_index,
            rows=chunk.rows,
            finished=tuple(o for o in ordered if isinstance(o, PromptResult)),
            failed=tuple(o for o in ordered if isinstance(o, PromptFailure)),
        )

    def commit(self, chunk_index: int) -> None:
        """Forget a chunk that is written."""
        for row in self._open.pop(chunk_index).rows:
            del self._leased[row]

    def reopen(self, rows: Collection[int]) -> list[Prompt]:
        """Take back outcomes that cannot be written; return their prompts, to be leased again."""
        for row in rows:
            del self._open[row // self._rows_per_chunk].outcomes[row]
        return [_without_columns(self._leased[row]) for row in sorted(rows)]


def _without_columns(prompt: Prompt) -> Prompt:
    return replace(prompt, columns=MappingProxyType({}))
