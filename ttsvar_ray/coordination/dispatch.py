"""What runs next: fills every worker up to two batches, so that none waits for a decision."""

from __future__ import annotations

from ttsvar_ray.coordination.admission import Admission
from ttsvar_ray.coordination.fleet import Batch, Worker
from ttsvar_ray.coordination.messages import RunBatch
from ttsvar_ray.coordination.state import State


class Dispatcher:
    """Sends batches."""

    def __init__(self, state: State, admission: Admission) -> None:
        self._state = state
        self._admission = admission
        self._next_batch_id = 0

    def dispatch(self) -> None:
        """Send whatever can be sent, breadth first: every worker has one batch before any has two."""
        for depth in range(self._state.settings.batches_in_flight):
            for worker in self._state.fleet.usable():
                if len(worker.batches) == depth and not worker.runs_alone:
                    self._send_batch(worker)

    def _send_batch(self, worker: Worker) -> None:
        state = self._state
        is_idle = not worker.batches
        if state.waiting:
            self._admission.admit(worker, worker.backlog.rows_missing(worker.limits, is_idle=is_idle))
        alone = worker.backlog.wants_alone
        segment_index, cuts = worker.backlog.take(worker.limits, is_idle=is_idle, fits=worker.rows_that_fit)
        if not cuts:
            return
        batch_id = self._next_batch_id
        self._next_batch_id += 1
        tasks = []
        for cut in cuts:
            live = state.live[cut.prompt_key]
            held = live.parents_on(worker.worker_id)
            task = live.population.task(cut.slots, attempt=live.attempt, held_parents=held)
            state.custody.sent(live, worker, task, batch_id)
            tasks.append(task)
        num_rows = sum(len(cut.slots) for cut in cuts)
        worker.batches[batch_id] = Batch(
            batch_id=batch_id,
            segment_index=segment_index,
            tasks=tuple(tasks),
            num_rows=num_rows,
            charge=num_rows * worker.tariff.running[segment_index],
        )
        worker.runs_alone = alone
        state.actions.append(RunBatch(worker_id=worker.worker_id, batch_id=batch_id, tasks=tuple(tasks)))
