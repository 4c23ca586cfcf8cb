"""The sink, an actor that writes the parts of whole chunks, one at a time, and the driver's side of it.

The sink fetches the images of a chunk. Whatever happens to it, `PartWriter` has whole chunks written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ttsvar_ray.cluster.failures import RestartPolicy, explain_full
from ttsvar_ray.cluster.waiting import ClusterWaitError, get, reason_of
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.lock import guarded
from ttsvar_ray.dataset.rows import RowContext
from ttsvar_ray.dataset.writer import ChunkReport, write_chunk, write_partial
from ttsvar_ray.errors import DamagedImageError, TtsVarError
from ttsvar_ray.leasing.ledger import WholeChunk
from ttsvar_ray.results import PromptResult
from ttsvar_ray.storage.location import Location, storage_environment

FETCH_TIMEOUT_SECONDS = 120.0
GET_TIMEOUT_SECONDS = 60.0
MAX_SINK_DEATHS = 3
"""In a row, without a part written between them."""


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


class PartError(TtsVarError):
    """A part that cannot be written."""


class PartWriter:
    """Has the parts written, one at a time, by an actor on this machine: the output was checked here."""

    def __init__(
        self, layout: OutputLayout, *, lock_token: str, actor_prefix: str, notice: Callable[[str], None]
    ) -> None:
        """Start the sink.

        Args:
            lock_token: of the lock on it, without which the sink changes nothing.
            actor_prefix: begins the name of the sink among the actors of the cluster.
        """
        self._layout = layout
        self._root = layout.root
        self._lock_token = lock_token
        self._prefix = actor_prefix
        self._incarnations = 0
        self._notice = notice
        self._restarts = RestartPolicy(name="sink", most_failures=MAX_SINK_DEATHS)
        self._writes: dict[Any, tuple[WholeChunk, RowContext]] = {}
        self._sink = self._start()

    @property
    def pending(self) -> list[Any]:
        """References to wait for: each is ready when its part is written, or cannot be."""
        return list(self._writes)

    def write(self, chunk: WholeChunk, context: RowContext) -> None:
        """Have a chunk written; `collect` tells how it went."""
        self._writes[self._sink.write.remote(chunk, context)] = (chunk, context)

    def collect(self, ref: Any) -> tuple[WholeChunk, ChunkReport | LostImages] | None:
        """Take in what became of a part that is ready.

        Returns:
            The chunk and how it went; None if the sink died of it and it is written again.

        Raises:
            PartError: it cannot be written, now or ever.
        """
        if ref not in self._writes:
            return None
        chunk, context = self._writes.pop(ref)
        what = f"part {chunk.chunk_index}"
        try:
            report: ChunkReport | LostImages = get(
                ref, seconds=GET_TIMEOUT_SECONDS, awaited=f"{what} to be written"
            )
        except RayActorError as error:
            self._revive(f"{what}: {reason_of(error)}", (chunk, context))
            return None
        except (RayError, ClusterWaitError) as error:
            raise PartError(f"{what} could not be written: {explain(error, self._root)}") from error
        self._restarts.worked()
        return chunk, report

    def flush(self, seconds: float) -> list[tuple[WholeChunk, ChunkReport | LostImages]]:
        """Wait for what is being written, at most so long, and return it; a sink that dies now stays dead."""
        deadline = time.monotonic() + seconds
        reports: list[tuple[WholeChunk, ChunkReport | LostImages]] = []
        while self._writes and (left := deadline - time.monotonic()) > 0:
            ready, _ = ray.wait(list(self._writes), num_returns=1, timeout=left)
            for ref in ready:
                chunk, _ = self._writes.pop(ref)
                try:
                    reports.append((chunk, ray.get(ref)))
                except RayError as error:
                    self._notice(f"part {chunk.chunk_index} was not written: {explain(error, self._root)}")
        return reports

    def keep(self, chunks: Iterable[WholeChunk], context: RowContext, seconds: float) -> int:
        """Have what is finished of unfinished chunks kept, in at most so long; return how many prompts."""
        deadline = time.monotonic() + seconds
        kept = 0
        refs = [self._sink.keep.remote(chunk, context, seconds) for chunk in chunks]
        try:
            for ref in refs:
                kept += ray.get(ref, timeout=max(0.0, deadline - time.monotonic()))
        except RayError as error:
            self._notice(f"some finished prompts were not kept: {explain(error, self._root)}")
        return kept

    def stop(self) -> None:
        """End the sink; a part that it was writing stays under its temporary name."""
        ray.kill(self._sink)

    def _start(self) -> Any:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        name = f"{self._prefix}sink" + (f".{self._incarnations}" if self._incarnations else "")
        self._incarnations += 1
        options = SinkActor.options(scheduling_strategy=here, name=name)
        return options.remote(self._root.uri, self._lock_token, storage_environment())

    def _revive(self, reason: str, first: tuple[WholeChunk, RowContext]) -> None:
        """Start another sink and hand it everything that the dead one had."""
        if self._restarts.failed(reason) is None:
            times = self._restarts.failures
            raise PartError(f"the sink died {times} times in a row; the last time over {reason}")
        self._notice(f"the sink died ({reason}); another one writes what it had")
        ray.kill(self._sink)  # One that cannot be reached may live all the same, and go on writing.
        for folder in self._layout.folders:
            folder.remove_leftovers()
        waiting = [first, *self._writes.values()]
        self._writes.clear()
        self._sink = self._start()
        for chunk, context in waiting:
            self.write(chunk, context)


def explain(error: BaseException, root: Location) -> str:
    """Return why a part could not be written, with the free space where that is the reason."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return explain_full(cause, root) or reason_of(error)
