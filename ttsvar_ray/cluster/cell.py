"""The coordinator actor: carries a `Coordinator`'s actions to the workers and their answers back.

    loop             waits for                          unblocked by
    ---------------  ---------------------------------  -------------------------------------------
    driver           `next_update`                      an outcome, a lease request, a notice, time
    _serve (worker)  the reply to its oldest batch      the reply; its death
    _tick            the next second                    time: the coordinator then sees who is overdue
    _watch_draining  the cluster's list of nodes        its answer, within its own time limit

One `_serve` loop a worker awaits its batches in the order they were sent. All loops share one thread: the
coordinator is never entered twice. No loop waits for a worker without end: what is overdue, the coordinator
abandons.

Invariants: a worker is in `_workers` from `WorkerJoined` to `WorkerLost`; a lost worker is killed before the
coordinator hears of it, so that no two workers ever hold one name; every worker that is lost or will go is
replaced by another one with a new name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError
from typing_extensions import assert_never

from ttsvar_ray.cluster.cell_messages import CellInfo, CellSpec, CellState, CellUpdate
from ttsvar_ray.cluster.metrics import CellMetrics
from ttsvar_ray.cluster.resources import DrainWatch
from ttsvar_ray.cluster.waiting import ClusterWaitError, PatientClock, reason_of, wait_for
from ttsvar_ray.cluster.worker import WorkerInfo, image_returns, join_images
from ttsvar_ray.cluster.worker_pool import WorkerHandle, WorkerPool
from ttsvar_ray.coordination.coordinator import Coordinator
from ttsvar_ray.coordination.messages import (
    Abandon,
    Action,
    BatchDone,
    Emit,
    Event,
    FailureKind,
    LeasePrompts,
    PromptsLeased,
    PromptsWithdrawn,
    Refuse,
    Release,
    RunBatch,
    ShardFailure,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.types import Prompt

TICK_SECONDS = 1.0
DRAIN_POLL_SECONDS = 1.0
STATUS_TIMEOUT_SECONDS = 10.0
STORE_FULL_PAUSE_SECONDS = 5.0
"""Before work that found the object store full is tried again, with fewer images at a time."""


class Cell:
    """Owns one coordinator and its workers; see the module docstring."""

    def __init__(self, spec: CellSpec) -> None:
        self._spec = spec
        self._last_segment = len(spec.plan.segments) - 1
        self._coordinator = Coordinator(
            plan=spec.plan, run_seed=spec.run_seed, settings=spec.settings, workload=spec.workload
        )
        self._pool = WorkerPool(spec, spawn=self._spawn, notice=self._notice, on_up=self._on_up)
        self._workers: dict[str, WorkerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._metrics = CellMetrics(spec.actor_prefix.rstrip("-"), spec.cell_id)
        self._news = asyncio.Event()
        self._outcomes: list[PromptResult | PromptFailure] = []
        self._lease_requests: list[int] = []
        self._notices: list[str] = []
        self._joined: list[WorkerInfo] = []
        self._broken: str | None = None
        self._stopped = False

    def __repr__(self) -> str:
        return self._spec.cell_id

    async def start(self, first_workers: Mapping[int, Any]) -> CellInfo:
        """Wait for all workers; work begins with the first that is up.

        Args:
            first_workers: by number; those that were started together with this cell.
        """
        self._pool.start_all(first_workers)
        self._spawn(self._tick())
        self._spawn(self._watch_draining())
        return CellInfo(cell_id=self._spec.cell_id, node_ip=ray.util.get_node_ip_address(), pid=os.getpid())

    async def next_update(self, seconds: float) -> CellUpdate:
        """Return the news as soon as there are any, at the latest after `seconds`."""
        if not self._news.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), timeout=seconds)
        self._news.clear()
        state, reason = self._state()
        update = CellUpdate(
            outcomes=tuple(self._outcomes),
            lease_requests=tuple(self._lease_requests),
            notices=tuple(self._notices),
            workers=len(self._workers),
            joined=tuple(self._joined),
            state=state,
            reason=reason,
        )
        for taken in (self._outcomes, self._lease_requests, self._notices, self._joined):
            taken.clear()
        return update

    def _state(self) -> tuple[CellState, str]:
        """Return how the cell is doing, and why."""
        if self._broken is not None:
            return CellState.BROKEN, self._broken
        if self._workers:
            return CellState.RUNNING, ""
        if self._pool.stuck is not None:
            return CellState.STUCK, self._pool.stuck
        if self._pool.unusable is not None:
            return CellState.UNUSABLE, self._pool.unusable
        return CellState.STARTING, ""

    async def lease(self, prompts: Sequence[Prompt], is_last: bool) -> None:
        """Hand over prompts, asked for or not."""
        self._handle(PromptsLeased(prompts=tuple(prompts), is_last=is_last))

    async def withdraw(self, prompt_keys: Sequence[str]) -> None:
        """Drop prompts that were finished elsewhere."""
        self._handle(PromptsWithdrawn(prompt_keys=tuple(prompt_keys)))

    async def stop(self) -> None:
        """Kill the workers; whatever they were doing is given up."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        for actor in [worker.actor for worker in self._workers.values()] + self._pool.starting:
            ray.kill(actor)

    # The coordinator's actions.

    def _handle(self, event: Event) -> None:
        for action in self._coordinator.handle(event):
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        match action:
            case RunBatch():
                self._send(self._workers[action.worker_id], action)
            case Release():
                worker = self._workers.get(action.worker_id)
                if worker is not None:
                    worker.actor.release.remote(action.prompt_key, action.attempt)
            case Emit():
                self._outcomes.append(action.outcome)
                self._news.set()
            case LeasePrompts():
                self._lease_requests.append(action.count)
                self._news.set()
            case Abandon():
                worker = self._workers[action.worker_id]
                if not worker.is_abandoned:
                    worker.is_abandoned = True
                    self._spawn(self._abandon(worker, action.reason))
            case Refuse():
                self._pool.refuse(self._workers.pop(action.worker_id), action.reason)
            case _:
                assert_never(action)

    def _send(self, worker: WorkerHandle, action: RunBatch) -> None:
        images = image_returns(action.tasks, self._last_segment)
        call = worker.actor.run_batch.options(num_returns=1 + images)
        worker.num_running += 1
        try:
            returns = call.remote(action.batch_id, action.tasks, images)
        except (ObjectStoreFullError, OutOfDiskError) as error:
            # Bits of many parents to replay travel through the object store.
            self._spawn(self._try_later(worker, action, error))
        else:
            worker.batches.put_nowait((action, returns if images else [returns]))

    # The workers.

    def _on_up(self, worker: WorkerHandle) -> bool:
        """Let the coordinator have a worker; whether it does not refuse it."""
        info = worker.info
        self._workers[worker.worker_id] = worker
        self._news.set()
        self._handle(WorkerJoined(worker_id=worker.worker_id, rows=info.rows, memory_bytes=info.memory_bytes))
        if worker.worker_id not in self._workers:
            return False
        self._joined.append(info)
        self._metrics.look(self._coordinator.view)  # A short run ends before the first tick.
        self._spawn(self._serve(worker))
        return True

    async def _serve(self, worker: WorkerHandle) -> None:
        """Await a worker's batches, in order, as long as it is up."""
        while True:
            sent = await worker.batches.get()
            if sent is None:
                return
            action, returns = sent
            try:
                results = await returns[0]
            except RayError as error:
                if _is_store_full(error):
                    await self._try_later(worker, action, error)
                    continue
                self._lose(worker, reason_of(error))
                return
            self._pool.note_answer(worker.number)
            worker.num_answered += 1
            self._tell_done(worker, action, join_images(results, returns))

    async def _try_later(self, worker: WorkerHandle, action: RunBatch, error: RayError) -> None:
        """Report a batch that found the object store full as one that was too large."""
        reason = reason_of(error)
        self._notice(f"{worker.worker_id}: {reason}; going on with fewer images at a time")
        await asyncio.sleep(STORE_FULL_PAUSE_SECONDS)
        failures = [ShardFailure.of(task, FailureKind.MEMORY, reason) for task in action.tasks]
        self._tell_done(worker, action, failures)

    def _tell_done(self, worker: WorkerHandle, action: RunBatch, results: Sequence[Any]) -> None:
        worker.num_running -= 1
        self._metrics.answered(action, results)
        self._handle(BatchDone(worker_id=worker.worker_id, batch_id=action.batch_id, results=tuple(results)))
        self._retire_if_drained(worker)

    async def _abandon(self, worker: WorkerHandle, reason: str) -> None:
        self._lose(worker, f"{reason}; it says: {await self._ask_status(worker)}")

    async def _ask_status(self, worker: WorkerHandle) -> str:
        """Return what a worker that is too slow is doing; its status thread answers while it computes."""
        try:
            asked = worker.actor.status.remote()
            return str(await wait_for(asked, seconds=STATUS_TIMEOUT_SECONDS, awaited="its status"))
        except (RayError, ClusterWaitError) as error:
            return reason_of(error)

    def _lose(self, worker: WorkerHandle, reason: str) -> None:
        """Remove a worker that failed and start another for it."""
        if self._stopped or self._workers.get(worker.worker_id) is not worker:
            return
        self._remove(worker)
        self._metrics.lost()
        self._notice(f"{worker.worker_id} is lost ({reason}); its prompts go on from their last selection")
        if not worker.is_draining:
            if worker.num_answered:
                self._pool.start_worker(worker.number)
            else:
                # Came up and died of its first work: a broken device would do so again and again.
                self._pool.restart_worker(worker.number, reason)
        self._handle(WorkerLost(worker_id=worker.worker_id, reason=reason))

    # Nodes that will go.

    async def _watch_draining(self) -> None:
        loop = asyncio.get_running_loop()
        watch = await loop.run_in_executor(None, DrainWatch, ray.get_runtime_context().gcs_address)
        if watch.unavailable is not None:
            self._notice(watch.unavailable)
            return
        while True:
            going = await loop.run_in_executor(None, watch.poll)
            for worker in list(self._workers.values()):
                if worker.info.node_id in going and not worker.is_draining:
                    self._drain(worker, going[worker.info.node_id])
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    def _drain(self, worker: WorkerHandle, seconds_left: float) -> None:
        """Let a worker finish what it runs; start another, which Ray puts on a node that stays."""
        worker.is_draining = True
        self._notice(
            f"{worker.worker_id} is on a node that is taken away (in {seconds_left:.0f} s): it finishes "
            "what it runs, and another worker is started elsewhere"
        )
        self._pool.start_worker(worker.number)
        self._handle(WorkerDraining(worker_id=worker.worker_id))
        self._retire_if_drained(worker)

    def _retire_if_drained(self, worker: WorkerHandle) -> None:
        if not worker.is_draining or worker.num_running or worker.worker_id not in self._workers:
            return
        self._remove(worker)
        self._handle(WorkerLost(worker_id=worker.worker_id, reason="its node is taken away"))

    def _remove(self, worker: WorkerHandle) -> None:
        del self._workers[worker.worker_id]
        ray.kill(worker.actor)
        worker.batches.put_nowait(None)

    # Time, news, background loops.

    async def _tick(self) -> None:
        clock = PatientClock()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._handle(Tick(now=clock()))
            self._metrics.look(self._coordinator.view)

    def _notice(self, text: str) -> None:
        self._notices.append(text)
        self._news.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a loop in the background; an error nobody expected ends the cell instead of vanishing."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)

        def over(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            if not done.cancelled() and (error := done.exception()) is not None:
                self._broken = f"{type(error).__name__}: {error}"
                self._news.set()

        task.add_done_callback(over)


def _is_store_full(error: RayError) -> bool:
    full = (ObjectStoreFullError, OutOfDiskError)
    return isinstance(error, full) or (isinstance(error, RayTaskError) and isinstance(error.cause, full))


# Async methods make it an asyncio actor; it computes little, so it asks for no CPU of its own.
CellActor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(Cell)
