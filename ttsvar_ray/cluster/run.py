"""One sitting of a job: the driver's loop between the prompts, the cell and the sink.

loop     waits for                                unblocked by
-------  ---------------------------------------  ------------------------------------------
_loop    news of the cell, a written part         either; every second, to look at signals
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ttsvar_ray.cluster.cell import CellActor, CellSpec, CellUpdate
from ttsvar_ray.cluster.progress import JobProgress, JobSummary
from ttsvar_ray.cluster.resources import WorkerLayout, describe_resources, lay_out_workers
from ttsvar_ray.cluster.session import StopRequest, ray_session, stop_on_signals
from ttsvar_ray.cluster.sink import LostImages, SinkActor
from ttsvar_ray.cluster.waiting import ClusterWaitError, get, reason_of, timeout_message
from ttsvar_ray.cluster.worker import EngineBuilder, WorkerInfo
from ttsvar_ray.config.sections import JobConfig
from ttsvar_ray.coordination.leasing import LeaseLedger, WholeChunk
from ttsvar_ray.coordination.messages import PromptFailure, PromptResult
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.dataset import (
    ChunkReport,
    OutputLayout,
    OutputLock,
    RowContext,
    committed_chunks,
    summarise_output,
)
from ttsvar_ray.errors import InterruptedRunError, RunFailedError
from ttsvar_ray.prompts.read import PromptScan
from ttsvar_ray.search.schedule import Plan

logger = logging.getLogger(__name__)

CELL = "cell-0"
POLL_S = 1.0
"""Longest time between two looks at signals, and between two progress reports."""

CELL_START_TIMEOUT_S = 900.0
"""Until the coordinator's first word: its process starts, and imports, on a node that may be busy."""
CELL_TIMEOUT_S = 120.0
COMMIT_TIMEOUT_S = 600.0
OPEN_CHUNKS = 4
"""Chunks' worth of prompts that may be out before leasing waits for parts to be committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobParts:
    """What a job runs: a plan, and how a worker builds its engine for it."""

    plan: Plan
    build_engine: EngineBuilder


@dataclass(slots=True, kw_only=True)
class Run:
    """One sitting of a job on a connected cluster."""

    config: JobConfig
    parts: JobParts
    layout: OutputLayout
    lock: OutputLock
    ledger: LeaseLedger
    progress: Callable[[JobProgress], None]
    scan: PromptScan
    context: Callable[..., RowContext]
    prompts_resumed: int
    cell: Any = None
    sink: Any = None
    wanted: int = 0
    info: WorkerInfo | None = None
    workers: int = 0
    most_workers: int = 0
    first_worker_at: float | None = None
    last_outcome_at: float = 0.0
    prompts_done: int = 0
    failed: int = 0
    images: int = 0
    reward_sum: float = 0.0
    notices: list[str] = field(default_factory=list)
    requests: deque[int] = field(default_factory=deque)
    writes: dict[Any, WholeChunk] = field(default_factory=dict)
    calls: list[Any] = field(default_factory=list)

    def execute(self) -> None:
        """Connect, start the actors, run to the end or to a request to stop."""
        cluster = self.config.cluster
        cpus = None
        if cluster.workers is not None:
            each = (
                cluster.cpus_per_worker if cluster.cpus_per_worker is not None else self.config.engine.threads
            )
            cpus = cluster.workers * each
        with ray_session(cluster.address, cpus=cpus), stop_on_signals() as stop:
            layout = lay_out_workers(
                ray.cluster_resources(),
                device=self.config.model.device,
                workers=cluster.workers,
                cpus_per_worker=cluster.cpus_per_worker,
                gpus_per_worker=cluster.gpus_per_worker,
                threads=self.config.engine.threads,
            )
            try:
                self._start_actors(layout)
                self._loop(stop)
            finally:
                self._stop_actors()

    def summary(self, started: float) -> JobSummary:
        """Count what is on disk."""
        on_disk = summarise_output(self.layout)
        computing = self.last_outcome_at - self.first_worker_at if self.first_worker_at is not None else 0.0
        return JobSummary(
            output=self.layout.root,
            prompts=on_disk.prompts,
            images=on_disk.images,
            failed=on_disk.failed,
            bad_lines=on_disk.bad_lines,
            mean_reward=on_disk.mean_reward,
            prompts_resumed=self.prompts_resumed,
            workers=self.most_workers,
            seconds=time.monotonic() - started,
            images_per_second=self.images / computing if computing > 0 else float("nan"),
            notices=tuple(self.notices),
        )

    def _start_actors(self, layout: WorkerLayout) -> None:
        cluster = self.config.cluster
        self.wanted = layout.count
        each = describe_resources({"CPU": layout.cpus, "GPU": layout.gpus})
        logger.info("starting %d worker%s of %s", layout.count, "s" * (layout.count != 1), each)
        # The output folder was checked on this machine; it must be written there, too.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.sink = SinkActor.options(scheduling_strategy=here).remote(str(self.layout.root))
        self.cell = CellActor.options(scheduling_strategy=here).remote(
            CellSpec(
                plan=self.parts.plan,
                run_seed=self.config.seed,
                settings=CoordinatorSettings(
                    spread=cluster.spread, max_attempts=cluster.max_attempts, keep=self.config.output.keep
                ),
                build_engine=self.parts.build_engine,
                layout=layout,
                segment_timeout_s=cluster.segment_timeout_s,
            )
        )
        self.calls.append(self.cell.start.remote())

    def _stop_actors(self) -> None:
        # The workers belong to the cell and end with it; asking it first frees their places at once.
        if self.cell is not None:
            with contextlib.suppress(RayError, ClusterWaitError):
                get(self.cell.stop.remote(), seconds=5.0, awaited="the cell to stop its workers")
        for actor in (self.cell, self.sink):
            if actor is not None:
                ray.kill(actor)

    def _loop(self, stop: StopRequest) -> None:
        update = self.cell.next_update.remote(POLL_S)
        asked_at = time.monotonic()
        patience = CELL_START_TIMEOUT_S
        while not self.ledger.is_done:
            ready, _ = ray.wait([update, *self.writes], num_returns=1, timeout=POLL_S)
            if stop.reason is not None:
                self._interrupt(stop.reason)
            self.lock.check()
            for ref in ready:
                if ref in self.writes:
                    self._on_written(ref)
            if update in ready:
                self._on_update(self._result_of_cell(update))
                update = self.cell.next_update.remote(POLL_S)
                asked_at, patience = time.monotonic(), CELL_TIMEOUT_S
            elif time.monotonic() - asked_at > patience:
                awaited = "the coordinator to report"
                raise RunFailedError(self._go_on(timeout_message(patience, awaited)))
            self._check_calls()
            self._answer_leases()
            self._report()

    def _on_update(self, update: CellUpdate) -> None:
        for notice in update.notices:
            logger.warning("%s", notice)
            self.notices.append(notice)
        for info in update.joined:
            logger.info("%s is up on %s (process %d)", info.worker_id, info.node_ip, info.pid)
            self.info = self.info or info
            self.first_worker_at = self.first_worker_at or time.monotonic()
        self.workers = update.workers
        self.most_workers = max(self.most_workers, update.workers)
        self.requests.extend(update.lease_requests)
        for outcome in update.outcomes:
            self.last_outcome_at = time.monotonic()
            self._count(outcome, 1)
            if isinstance(outcome, PromptFailure):
                logger.warning("prompt %s is given up: %s", outcome.prompt.key, outcome.errors[-1])
            chunk = self.ledger.add(CELL, outcome).whole
            if chunk is not None:
                self._write(chunk)
        if update.fatal is not None:
            raise RunFailedError(self._go_on(update.fatal))

    def _count(self, outcome: PromptResult | PromptFailure, times: int) -> None:
        self.prompts_done += times
        if isinstance(outcome, PromptResult):
            self.images += times * len(outcome.images)
            self.reward_sum += times * outcome.images[0].reward
        else:
            self.failed += times

    def _write(self, chunk: WholeChunk) -> None:
        assert self.info is not None, "outcomes come from workers, which have joined"
        context = self.context(model=self.info.model_name, reward_name=self.info.reward_name)
        self.writes[self.sink.write.remote(chunk, context)] = chunk

    def _on_written(self, ref: Any) -> None:
        chunk = self.writes.pop(ref)
        try:
            report: ChunkReport | LostImages = get(
                ref, seconds=POLL_S, awaited=f"part {chunk.chunk_index} to be written"
            )
        except (RayError, ClusterWaitError) as error:
            raise RunFailedError(
                self._go_on(f"part {chunk.chunk_index} could not be written: {reason_of(error)}")
            ) from error
        if isinstance(report, ChunkReport):
            self.ledger.commit(chunk.chunk_index)
            return
        notice = (
            f"images of {len(report.rows)} prompts of part {report.chunk_index} are lost ({report.reason}); "
            "they are generated again"
        )
        logger.warning("%s", notice)
        self.notices.append(notice)
        for outcome in chunk.finished:
            if outcome.prompt.row in report.rows:
                self._count(outcome, -1)
        self.ledger.reopen(report.rows)
        again = self.ledger.lease(CELL, len(report.rows), now=time.monotonic())
        self.calls.append(self.cell.lease.remote(again.prompts, again.is_last))

    def _answer_leases(self) -> None:
        while self.requests:
            room = self._room(self.requests[0])
            if room < 1 and not self.ledger.is_exhausted:
                return
            count = min(self.requests.popleft(), max(room, 1))
            lease = self.ledger.lease(CELL, count, now=time.monotonic())
            self.calls.append(self.cell.lease.remote(lease.prompts, lease.is_last))

    def _room(self, asked: int) -> int:
        """Return how many more prompts may be out: enough to keep going past a slow chunk, not all."""
        limit = max(OPEN_CHUNKS * self.config.output.rows_per_part, 4 * asked)
        return limit - self.ledger.num_uncommitted

    def _check_calls(self) -> None:
        """See the errors of calls whose answers nobody needs."""
        if not self.calls:
            return
        done, self.calls = ray.wait(self.calls, num_returns=len(self.calls), timeout=0)
        for call in done:
            self._result_of_cell(call)

    def _result_of_cell(self, ref: Any) -> Any:
        try:
            return get(ref, seconds=CELL_TIMEOUT_S, awaited="the coordinator to answer")
        except (RayError, ClusterWaitError) as error:
            raise RunFailedError(self._go_on(f"the coordinator failed: {reason_of(error)}")) from error

    def _interrupt(self, reason: str) -> None:
        """Commit what is whole, then end."""
        deadline = time.monotonic() + COMMIT_TIMEOUT_S
        while self.writes and time.monotonic() < deadline:
            ready, _ = ray.wait(list(self.writes), num_returns=1, timeout=POLL_S)
            for ref in ready:
                chunk = self.writes.pop(ref)
                with contextlib.suppress(RayError):
                    if isinstance(ray.get(ref), ChunkReport):
                        self.ledger.commit(chunk.chunk_index)
        raise InterruptedRunError(self._go_on(f"stopped by {reason}"))

    def _go_on(self, what: str) -> str:
        parts = len(committed_chunks(self.layout))
        return (
            f"{what}. {parts} of {self.ledger.num_chunks} parts are committed in {self.layout.root}; "
            "the same command goes on from there"
        )

    def _report(self) -> None:
        best = self.prompts_done - self.failed
        started = self.first_worker_at
        self.progress(
            JobProgress(
                prompts_total=self.scan.count,
                prompts_resumed=self.prompts_resumed,
                prompts_done=self.prompts_done,
                failed=self.failed,
                images=self.images,
                mean_reward=self.reward_sum / best if best else float("nan"),
                workers=self.workers,
                workers_wanted=self.wanted,
                seconds=0.0 if started is None else time.monotonic() - started,
            )
        )
