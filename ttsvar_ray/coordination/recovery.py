"""What is done about losses and failures: run again elsewhere, ask less, isolate, give up."""

from __future__ import annotations

from collections.abc import Sequence

from ttsvar_ray.coordination.fleet import Batch, Worker
from ttsvar_ray.coordination.live_prompt import LivePrompt
from ttsvar_ray.coordination.messages import FailureKind, ShardFailure, ShardTask
from ttsvar_ray.coordination.state import State


class Recovery:
    """Takes in what went wrong."""

    def __init__(self, state: State) -> None:
        self._state = state

    def lose(self, worker_id: str, reason: str) -> None:
        """Take back everything that a worker ran and held; suspect the prompts that it ran."""
        state = self._state
        worker = state.fleet.remove(worker_id)
        if worker is None:
            return
        for live in state.live.values():
            if live.piecemeal_on == worker_id:
                state.end_piecemeal(live)
            state.custody.lose(live, worker_id)
            if live.unseated and live.piecemeal_on is None:
                state.unplaced[live.key] = None
        running = sorted({key for batch in worker.batches.values() for key in batch.prompt_keys})
        for key in running:
            if key in state.live:
                live = state.live[key]
                error = f"worker {worker_id} was lost in segment {live.population.segment.index}: {reason}"
                live.errors.append(error)
                live.repeats += 1
                live.suspicions += 1
                # Only a prompt that had the worker to itself is certain to have had a part in its end.
                if running == [key]:
                    self._count_failure(live)

    def drain(self, worker: Worker) -> None:
        """Give a worker nothing new, and take back what waits there."""
        state = self._state
        state.fleet.drain(worker)
        for live in state.live.values():
            if state.custody.take_off_backlog(live, worker) or live.piecemeal_on == worker.worker_id:
                state.displace(live)

    def on_failure(self, live: LivePrompt, worker: Worker, task: ShardTask, failure: ShardFailure) -> None:
        """Run a failed shard again: there with all bits where the worker lost its state, else elsewhere."""
        if failure.kind is FailureKind.STALE and _relied_on_state(task):
            # It may hold a part: with that released, both sides know what is there.
            self._state.actions += self._state.custody.release(live, worker.worker_id)
            self.requeue(live, worker, task.slots)
        else:
            self.retry_elsewhere(live, worker, failure.error)

    def requeue(self, live: LivePrompt, worker: Worker, slots: Sequence[int]) -> None:
        """Let slots that were in flight on a worker wait there again."""
        self._state.custody.wait(live, worker, slots)
        if worker.is_draining and self._state.custody.take_off_backlog(live, worker):
            self._state.displace(live)

    def retry_elsewhere(self, live: LivePrompt, worker: Worker, error: str) -> None:
        """Begin a new attempt at what is left of the segment; its old state is not trusted."""
        where = f"segment {live.population.segment.index}, worker {worker.worker_id}"
        live.errors.append(f"attempt {live.attempt}, {where}: {error}")
        if self._count_failure(live):
            return
        live.avoid.add(worker.worker_id)
        self._state.end_piecemeal(live)
        self._state.actions += self._state.custody.withdraw(live)
        live.attempt += 1
        self._state.unplaced[live.key] = None

    def can_ask_less(self, worker: Worker, batch: Batch) -> bool:
        """Return whether a worker that ran out of memory can be given less than this batch."""
        return batch.num_rows > 1 or worker.capacity > worker.least

    def shrink(self, worker: Worker, batch: Batch) -> None:
        """Ask less of a worker that ran out of memory: smaller batches of that segment, less held."""
        worker.limits[batch.segment_index] = max(
            1, min(worker.limits[batch.segment_index], batch.num_rows // 2)
        )
        worker.capacity = max(min(worker.capacity, worker.charged + batch.charge) // 2, worker.least)
        for live in self._state.live.values():
            if not live.runs_on(worker.worker_id):
                self._state.actions += self._state.custody.release(live, worker.worker_id)

    def _count_failure(self, live: LivePrompt) -> bool:
        """Count a failed attempt; return whether it was the last one."""
        live.failures += 1
        if live.failures < self._state.settings.max_attempts:
            return False
        self._state.give_up(live)
        return True


def _relied_on_state(task: ShardTask) -> bool:
    """Return whether a task asked for parents that the worker was believed to hold."""
    return any(parent not in task.parent_bits for parent in task.parent_slots)
