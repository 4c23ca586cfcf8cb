"""The driver's side of the sink: whole chunks out, written parts back, whatever happens to the sink."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ttsvar_ray.cluster.failures import RestartPolicy, explain_full
from ttsvar_ray.cluster.sink import LostImages, SinkActor
from ttsvar_ray.cluster.waiting import ClusterWaitError, get, reason_of
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.rows import RowContext
from ttsvar_ray.dataset.writer import ChunkReport
from ttsvar_ray.errors import TtsVarError
from ttsvar_ray.leasing.ledger import WholeChunk
from ttsvar_ray.storage.location import Location, storage_environment

GET_TIMEOUT_SECONDS = 60.0
MAX_SINK_DEATHS = 3
"""In a row, without a part written between them."""


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
            notice: tells people.
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
