"""The coordinator actor: carries a `Coordinator`'s actions to the workers and their answers back.

    loop             waits for                          unblocked by
    ---------------  ---------------------------------  -------------------------------------------
    driver           `next_update`                      an outcome, a lease request, a notice, time
    _bring_up        a new worker's `describe`          its engine stands; its death; time
    _serve (worker)  the reply to its oldest batch      the reply; its death; `segment_timeout_s`

One `_serve` loop a worker awaits its batches in the order they were sent, so the time limit of a batch
starts when the one before it is done. All loops share one thread: the coordinator is never entered twice.

Invariants: a worker is in `_members` from `WorkerJoined` to `WorkerLost`; a lost worker is killed before
the coordinator hears of it, so that no two workers ever hold one name; every worker that is lost is
replaced by one with a new name.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from ttsvar_ray.cluster.resources import WorkerLayout, describe_cluster, describe_resources
from ttsvar_ray.cluster.waiting import ClusterWaitError, reason_of, wait_for
from ttsvar_ray.cluster.worker import (
    EngineBuilder,
    WorkerActor,
    WorkerInfo,
    WorkerStatus,
    image_returns,
    join_images,
)
from ttsvar_ray.coordination.actions import Action, Emit, LeasePrompts, Release, RunBatch
from ttsvar_ray.coordination.coordinator import Coordinator
from ttsvar_ray.coordination.events import BatchDone, Event, PromptsLeased, WorkerJoined, WorkerLost
from ttsvar_ray.coordination.messages import PromptFailure, PromptResult
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.errors import TtsVarError
from ttsvar_ray.search.schedule import Plan
from ttsvar_ray.types import Prompt

STATUS_TIMEOUT_S = 10.0
START_FAILURES = 3
"""Times in a row that the worker of one place may fail to start before the place is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSpec:
    """What one cell runs.

    Attributes:
        plan, run_seed, settings: the coordinator's.
        build_engine: how a worker makes its engine.
        layout: how many workers, and their resources.
        segment_timeout_s: a worker that takes longer over one micro-batch is replaced.
        start_notice_s: seconds between two notices about a worker that is not up yet.
        start_timeout_s: seconds without any worker at all before the run is given up.
    """

    plan: Plan
    run_seed: int
    settings: CoordinatorSettings
    build_engine: EngineBuilder
    layout: WorkerLayout
    segment_timeout_s: float
    start_notice_s: float = 60.0
    start_timeout_s: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellUpdate:
    """News since the last update.

    Attributes:
        outcomes: finished prompts, in the order they finished.
        lease_requests: one count per `LeasePrompts`; each wants one answer.
        notices: what a person should know, one line each.
        workers: workers that are up.
        joined: workers that came up.
        fatal: why the cell cannot go on.
    """

    outcomes: tuple[PromptResult | PromptFailure, ...] = ()
    lease_requests: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()
    workers: int = 0
    joined: tuple[WorkerInfo, ...] = ()
    fatal: str | None = None


@dataclass(slots=True)
class _Member:
    worker_id: str
    place: int
    handle: Any
    batches: asyncio.Queue[tuple[RunBatch, list[Any]]] = field(default_factory=asyncio.Queue)


class Cell:
    """Owns one coordinator and its workers; see the module docstring."""

    def __init__(self, spec: CellSpec) -> None:
        self._spec = spec
        self._last_segment = len(spec.plan.segments) - 1
        self._coordinator = Coordinator(plan=spec.plan, run_seed=spec.run_seed, settings=spec.settings)
        self._members: dict[str, _Member] = {}
        self._generation: dict[int, int] = {}
        self._start_failures: dict[int, int] = {}
        self._starting: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._outcomes: list[PromptResult | PromptFailure] = []
        self._lease_requests: list[int] = []
        self._notices: list[str] = []
        self._joined: list[WorkerInfo] = []
        self._fatal: str | None = None
        self._stopped = False

    def __repr__(self) -> str:
        return "cell"

    async def start(self) -> None:
        """Start all workers; work begins with the first that is up."""
        for place in range(self._spec.layout.count):
            self._start_worker(place)
        self._spawn(self._give_up_without_workers())

    async def next_update(self, seconds: float) -> CellUpdate:
        """Return the news as soon as there are any, at the latest after `seconds`."""
        if not self._news.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), timeout=seconds)
        self._news.clear()
        update = CellUpdate(
            outcomes=tuple(self._outcomes),
            lease_requests=tuple(self._lease_requests),
            notices=tuple(self._notices),
            workers=len(self._members),
            joined=tuple(self._joined),
            fatal=self._fatal,
        )
        for taken in (self._outcomes, self._lease_requests, self._notices, self._joined):
            taken.clear()
        return update

    async def lease(self, prompts: Sequence[Prompt], is_last: bool) -> None:
        """Answer one lease request."""
        self._handle(PromptsLeased(prompts=tuple(prompts), is_last=is_last))

    async def stop(self) -> None:
        """Kill the workers; whatever they were doing is given up."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        handles = [member.handle for member in self._members.values()] + list(self._starting.values())
        for handle in handles:
            ray.kill(handle)

    def _handle(self, event: Event) -> None:
        for action in self._coordinator.handle(event):
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, Emit):
            self._outcomes.append(action.outcome)
            self._news.set()
        elif isinstance(action, LeasePrompts):
            self._lease_requests.append(action.count)
            self._news.set()
        elif isinstance(action, Release):
            member = self._members.get(action.worker_id)
            if member is not None:
                member.handle.release.remote(action.prompt_key, action.attempt)
        else:
            assert isinstance(action, RunBatch)
            member = self._members[action.worker_id]
            images = image_returns(action.tasks, self._last_segment)
            call = member.handle.run_batch.options(num_returns=1 + images)
            returns = call.remote(action.batch_id, action.tasks, images)
            member.batches.put_nowait((action, returns if images else [returns]))

    def _start_worker(self, place: int) -> None:
        """Ask Ray for a worker; `_bring_up` waits for it."""
        generation = self._generation.get(place, -1) + 1
        self._generation[place] = generation
        worker_id = f"worker-{place}" if generation == 0 else f"worker-{place}.{generation}"
        layout = self._spec.layout
        options = WorkerActor.options(num_cpus=layout.cpus, num_gpus=layout.gpus)
        handle = options.remote(worker_id, self._spec.build_engine)
        self._starting[worker_id] = handle
        self._spawn(self._bring_up(worker_id, place, handle))

    async def _bring_up(self, worker_id: str, place: int, handle: Any) -> None:
        ref = handle.describe.remote()
        layout = self._spec.layout
        asked = describe_resources({"CPU": layout.cpus, "GPU": layout.gpus})
        while True:
            try:
                info = await wait_for(
                    ref, seconds=self._spec.start_notice_s, awaited=f"{worker_id} to start on {asked}"
                )
                break
            except ClusterWaitError as error:
                self._notice(str(error))
            except TtsVarError as error:
                # Settings or weights that no other worker could use either.
                self._give_up(f"{worker_id} cannot be built: {reason_of(error)}")
                return
            except RayError as error:
                self._fail_to_start(worker_id, place, reason_of(error))
                return
        del self._starting[worker_id]
        member = _Member(worker_id=worker_id, place=place, handle=handle)
        self._members[worker_id] = member
        self._joined.append(info)
        self._news.set()
        self._spawn(self._serve(member))
        self._handle(WorkerJoined(worker_id=worker_id, rows=info.rows))

    def _fail_to_start(self, worker_id: str, place: int, reason: str) -> None:
        del self._starting[worker_id]
        failures = self._start_failures.get(place, 0) + 1
        self._start_failures[place] = failures
        self._notice(f"{worker_id} failed to start: {reason}")
        if failures < START_FAILURES:
            self._start_worker(place)
            return
        self._notice(f"place {place} is given up after {failures} failures; the run goes on with the others")
        if not self._members and not self._starting:
            self._give_up(f"no worker could be started; the last error was: {reason}")

    async def _serve(self, member: _Member) -> None:
        """Await a worker's batches, in order, until it is lost."""
        while True:
            action, returns = await member.batches.get()
            awaited = f"micro-batch {action.batch_id} of {member.worker_id}"
            try:
                results = await wait_for(returns[0], seconds=self._spec.segment_timeout_s, awaited=awaited)
            except ClusterWaitError as error:
                self._lose(member, f"{error}; it says: {await self._ask_status(member)}")
                return
            except RayError as error:
                self._lose(member, reason_of(error))
                return
            self._start_failures[member.place] = 0
            self._handle(
                BatchDone(
                    worker_id=member.worker_id,
                    batch_id=action.batch_id,
                    results=join_images(results, returns),
                )
            )

    async def _ask_status(self, member: _Member) -> str:
        """Return what a worker that is too slow is doing; its status thread answers while it computes."""
        try:
            status: WorkerStatus = await wait_for(
                member.handle.status.remote(), seconds=STATUS_TIMEOUT_S, awaited="its status"
            )
        except (RayError, ClusterWaitError) as error:
            return reason_of(error)
        return (
            f"micro-batch {status.batch_id} since {status.busy_seconds:.0f} s, {status.batches_done} done, "
            f"{status.held_trajectories} trajectories of {status.held_prompts} prompts held"
        )

    def _lose(self, member: _Member, reason: str) -> None:
        """Bury a worker and start another in its place."""
        if self._stopped:
            return
        del self._members[member.worker_id]
        ray.kill(member.handle)
        self._notice(f"{member.worker_id} is lost ({reason}); its prompts go on from their last selection")
        self._start_worker(member.place)
        self._handle(WorkerLost(worker_id=member.worker_id, reason=reason))

    async def _give_up_without_workers(self) -> None:
        """End the run when there has been no worker for too long."""
        limit = self._spec.start_timeout_s
        waited = 0.0
        while self._fatal is None:
            step = min(5.0, limit)
            await asyncio.sleep(step)
            waited = 0.0 if self._members else waited + step
            if waited >= limit:
                self._give_up(f"no worker was up for {limit:g} s; the cluster has {describe_cluster()}")

    def _notice(self, text: str) -> None:
        self._notices.append(text)
        self._news.set()

    def _give_up(self, reason: str) -> None:
        self._fatal = reason
        self._news.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a loop in the background; an error nobody expected ends the run instead of vanishing."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)

        def over(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            if not done.cancelled() and (error := done.exception()) is not None:
                self._give_up(f"the coordinator failed: {type(error).__name__}: {error}")

        task.add_done_callback(over)


# Async methods make it an asyncio actor; it computes little, so it asks for no CPU of its own.
CellActor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(Cell)
