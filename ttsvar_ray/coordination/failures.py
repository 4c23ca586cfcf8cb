"""What is done about losses and failures: run again there or elsewhere, ask less, give up."""

from __future__ import annotations

from collections.abc import Iterator

from ttsvar_ray.coordination.decisions import (
    Blame,
    Decision,
    Evict,
    GiveUp,
    PromptView,
    Requeue,
    Restart,
    Shrink,
    View,
)
from ttsvar_ray.coordination.messages import FailureKind, ShardFailure, ShardTask
from ttsvar_ray.coordination.workers import Batch, WorkerView


def worker_lost(view: View, worker: WorkerView, reason: str) -> Iterator[Decision]:
    """Suspect the prompts that a worker ran when it was lost; it holds nothing any more.

    Only a prompt that had the worker to itself is certain to have had a part in its end.
    """
    running = sorted({key for batch in worker.batches.values() for key in batch.prompt_keys})
    for key in running:
        if key in view.live:
            where = f"worker {worker.worker_id} was lost in segment {view.live[key].segment.index}"
            yield from _blame(
                view, view.live[key], f"{where}: {reason}", is_proven=running == [key], killed_worker=True
            )


def shard_failed(
    view: View, prompt: PromptView, worker: WorkerView, batch: Batch, task: ShardTask, failure: ShardFailure
) -> Iterator[Decision]:
    """Run a failed shard again: there if only the worker has to change, else elsewhere."""
    if is_out_of_memory(worker, batch, failure):
        yield _requeue(prompt, worker, task, "out of memory")
    elif failure.kind is FailureKind.STALE and any(p not in task.parent_bits for p in task.parent_slots):
        reason = "the worker does not hold the parents that it was believed to hold"
        # It may hold a part: with that evicted, both sides know what is there.
        yield Evict(prompt_key=prompt.key, worker_id=worker.worker_id, reason=reason)
        yield _requeue(prompt, worker, task, reason)
    else:
        yield from attempt_failed(view, prompt, worker, failure.error)


def attempt_failed(view: View, prompt: PromptView, worker: WorkerView, error: str) -> Iterator[Decision]:
    """Begin a new attempt at what is left of the segment, or give up; its old state is not trusted."""
    where = f"attempt {prompt.attempt}, segment {prompt.segment.index}, worker {worker.worker_id}"
    yield from _blame(view, prompt, f"{where}: {error}", is_proven=True)
    if prompt.key in view.live:
        yield Restart(prompt_key=prompt.key, away_from=worker.worker_id, reason=error)


def not_comparable(prompt: PromptView, error: Exception) -> Iterator[Decision]:
    """Give a prompt up whose population cannot be compared: another attempt would see the same numbers."""
    reason = f"{type(error).__name__}: {error}"
    yield Blame(prompt_key=prompt.key, reason=reason, is_proven=False)
    yield GiveUp(prompt_key=prompt.key)


def is_out_of_memory(worker: WorkerView, batch: Batch, failure: ShardFailure) -> bool:
    """Return whether a worker ran out of memory and can be given less than this batch."""
    return failure.kind is FailureKind.MEMORY and (batch.num_rows > 1 or worker.capacity > worker.least)


def shrink(worker: WorkerView, batch: Batch) -> Shrink:
    """Return how much less to ask of a worker that ran out of memory."""
    limit = worker.limits[batch.segment_index]
    return Shrink(
        worker_id=worker.worker_id,
        segment_index=batch.segment_index,
        rows=max(1, min(limit, batch.num_rows // 2)),
        capacity=max(min(worker.capacity, worker.reserved + batch.memory) // 2, worker.least),
        reason=f"out of memory with {batch.num_rows} trajectories of segment {batch.segment_index}",
    )


def _blame(
    view: View, prompt: PromptView, reason: str, *, is_proven: bool, killed_worker: bool = False
) -> Iterator[Decision]:
    """Note a failure; give the prompt up where it is one too many."""
    yield Blame(prompt_key=prompt.key, reason=reason, is_proven=is_proven, killed_worker=killed_worker)
    if is_proven and prompt.failures >= view.settings.max_attempts:
        yield GiveUp(prompt_key=prompt.key)


def _requeue(prompt: PromptView, worker: WorkerView, task: ShardTask, reason: str) -> Requeue:
    return Requeue(prompt_key=prompt.key, worker_id=worker.worker_id, slots=task.slots, reason=reason)
