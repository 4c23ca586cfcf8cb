"""The sink actor: fetches the images of whole chunks and writes their parts, one at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.lock import guarded
from ttsvar_ray.dataset.rows import RowContext
from ttsvar_ray.dataset.writer import ChunkReport, write_chunk, write_partial
from ttsvar_ray.errors import DamagedImageError
from ttsvar_ray.leasing.ledger import WholeChunk
from ttsvar_ray.results import PromptResult

FETCH_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LostImages:
    """A chunk that was not written, because images of these rows are gone with the node that held them, or
    came with other bytes than they were sent with."""

    chunk_index: int
    rows: tuple[int, ...]
    reason: str


class Sink:
    """Writes parts. A part appears under its final name only when whole: killing this actor is safe."""

    def __init__(
        self, root: str, lock_token: str | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start.

        Args:
            root: path or URI of the output folder.
            lock_token: of the lock on it: nothing is changed once another run has it; None trusts the caller.
            environment: variables that lead the driver to its storage; this process has those of its node.
        """
        os.environ.update(environment or {})
        layout = OutputLayout(root)
        self._layout = layout if lock_token is None else guarded(layout, lock_token)

    def __repr__(self) -> str:
        return "sink"

    def write(self, chunk: WholeChunk, context: RowContext) -> ChunkReport | LostImages:
        """Write one chunk and commit it, or say which rows must be generated again.

        A part that is there already keeps its rows, and its dead letters until the new rows are in it.

        Args:
            chunk: outcomes whose image payloads are bytes or object references.
        """
        deadline = time.monotonic() + FETCH_TIMEOUT_SECONDS
        absent = _fetch_images(chunk)
        if absent:
            return LostImages(chunk_index=chunk.chunk_index, rows=absent, reason="they did not arrive")
        try:
            return write_chunk(
                self._layout,
                chunk.chunk_index,
                rows=chunk.rows,
                finished=chunk.finished,
                failed=chunk.failed,
                context=context,
                resolve=fetch,
            )
        except (RayError, DamagedImageError) as error:
            lost = tuple(outcome.prompt.row for outcome in chunk.finished if not _is_whole(outcome, deadline))
            if not lost:
                raise
            reason = str(error) if isinstance(error, DamagedImageError) else type(error).__name__
            return LostImages(chunk_index=chunk.chunk_index, rows=lost, reason=reason)

    def keep(self, chunk: WholeChunk, context: RowContext, seconds: float) -> int:
        """Keep what is finished of a chunk that is not whole, for the next session; return how many prompts.

        Args:
            chunk: outcomes whose image payloads are bytes or object references; without those whose images
                do not arrive.
            seconds: longest wait for images.
        """
        deadline = time.monotonic() + seconds
        absent = _fetch_images(chunk, seconds)
        there = [o for o in chunk.finished if o.prompt.row not in absent and _is_whole(o, deadline)]
        if there:
            write_partial(
                self._layout,
                chunk.chunk_index,
                rows=chunk.rows,
                finished=there,
                context=context,
                resolve=fetch,
            )
        return len(there)


def fetch(payload: Any, timeout_seconds: float = FETCH_TIMEOUT_SECONDS) -> bytes:
    """Return the bytes of an image, wherever they are."""
    if isinstance(payload, ray.ObjectRef):
        payload = ray.get(payload, timeout=timeout_seconds)
    assert isinstance(payload, bytes), f"image payload: expected bytes, got {type(payload).__name__}"
    return payload


def _fetch_images(chunk: WholeChunk, timeout_seconds: float = FETCH_TIMEOUT_SECONDS) -> tuple[int, ...]:
    """Let all images of a chunk travel to this node at the same time; `fetch` then takes them one by one.

    Returns:
        Rows of which an image has neither arrived nor failed in that time, for all of them together.
    """
    row_of = {
        kept.image.payload: outcome.prompt.row
        for outcome in chunk.finished
        for kept in outcome.images
        if isinstance(kept.image.payload, ray.ObjectRef)
    }
    if not row_of:
        return ()
    _, absent = ray.wait(list(row_of), num_returns=len(row_of), timeout=timeout_seconds, fetch_local=True)
    return tuple(sorted({row_of[ref] for ref in absent}))


def _is_whole(outcome: PromptResult, deadline: float) -> bool:
    try:
        return all(
            kept.image.is_intact(fetch(kept.image.payload, max(0.0, deadline - time.monotonic())))
            for kept in outcome.images
        )
    except RayError:
        return False


SinkActor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(Sink)
