"""One session of a job: the driver's loop between the prompts, the cells and the sink.

    prompts --LeaseLedger--> cells ==> workers      LeasePolicy: who is handed what, when
                  |  whole chunks
                  '--------> sink --> parts         PartWriter

    loop     waits for                                unblocked by
    -------  ---------------------------------------  ------------------------------------------
    _loop    news of a cell, a written part           either; every second, to look at signals

Invariants: beside the prompts that the cells have, the driver holds no more than `LeasePolicy.limit`
outcomes, however long the prompt set; no wait in it is longer than a second. It ends in one of four ways:
done; asked to stop; nobody left to work; too much failing. In all but the first it commits what is whole
before it says why.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ttsvar_ray.cluster.cell_messages import CellSpec, CellState, CellUpdate
from ttsvar_ray.cluster.cells import CellLost, Cells
from ttsvar_ray.cluster.metrics import RunMetrics
from ttsvar_ray.cluster.parts import LostImages, PartError, PartWriter
from ttsvar_ray.cluster.resources import (
    WorkerLayout,
    demanded,
    describe_cluster,
    describe_resources,
    device_of,
    divide_workers,
    fits,
    lay_out_workers,
)
from ttsvar_ray.cluster.session import StopRequest, is_submitted_job, ray_folder, ray_session, stop_on_signals
from ttsvar_ray.cluster.stats import Session, how_to_go_on
from ttsvar_ray.cluster.verifiers import VerifierPool, lay_out_replicas
from ttsvar_ray.cluster.waiting import PatientClock, reason_of
from ttsvar_ray.cluster.worker import PackedBuilder, WorkerInfo
from ttsvar_ray.coordination.settings import Workload
from ttsvar_ray.dataset.writer import ChunkReport
from ttsvar_ray.errors import CannotStartError, InterruptedRunError, RunFailedError, TtsVarError
from ttsvar_ray.job.preflight import Device
from ttsvar_ray.job.resolved import check_execution, coordinator_settings
from ttsvar_ray.leasing.ledger import WholeChunk
from ttsvar_ray.leasing.policy import LeasePolicy
from ttsvar_ray.results import PromptFailure, PromptResult

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Longest time between two looks at signals, and between two progress reports."""

COMMIT_TIMEOUT_SECONDS = 600.0
"""How long an ending run waits for parts that are being written, where nobody presses it."""


@dataclass(slots=True, kw_only=True)
class Driver(Session):
    """One session of a job."""

    tell_device: Callable[[Device], None]
    leases: LeasePolicy = field(init=False)
    cells: Cells = field(init=False)
    writer: PartWriter = field(init=False)
    metrics: RunMetrics = field(init=False)
    verifiers: VerifierPool | None = None
    info: WorkerInfo | None = None
    is_pressed: bool = False

    @property
    def run_name(self) -> str:
        """The name of the run among others of its cluster: its output folder's, and which shard it is."""
        folders = str(self.layout.root).rstrip("/").split("/")[-2 if self.config.cluster.shard else -1 :]
        return re.sub(r"[^\w.-]+", "-", "-".join(folders)) or "run"

    def run(self) -> None:
        """Connect, start the actors, run to the end or to a request to stop.

        Raises:
            InterruptedRunError, RunFailedError: what is whole is committed; the same command goes on.
            InputError: the prompt file was changed; the same command goes on once it is as it was.
        """
        cluster, verifiers = self.config.cluster, self.config.verifiers
        cpus = None
        if cluster.workers is not None:
            each = (
                cluster.cpus_per_worker if cluster.cpus_per_worker is not None else self.config.engine.threads
            )
            cpus = cluster.workers * each + verifiers.replicas * verifiers.cpus_per_replica
        with ray_session(cluster.address, cpus=cpus, run_name=self.run_name), stop_on_signals() as stop:
            resources = ray.cluster_resources()
            on_gpu = self.config.model.device != "cpu" and cluster.gpus_per_worker != 0
            replicas, left = lay_out_replicas(
                verifiers, resources, on_gpu=on_gpu and resources.get("GPU", 0.0) > 0
            )
            layout = lay_out_workers(
                left,
                device=self.config.model.device,
                workers=cluster.workers,
                cpus_per_worker=cluster.cpus_per_worker,
                gpus_per_worker=cluster.gpus_per_worker,
                threads=self.config.engine.threads,
            )
            one = replace(layout, count=1)
            if not any(node["Alive"] and fits(one, node["Resources"]) for node in ray.nodes()):
                asked = describe_resources({"CPU": one.cpus, "GPU": one.gpus})
                self.notice(
                    f"no node has room for a worker of {asked}; nothing begins before one joins that has: "
                    f"waiting for at most {cluster.start_timeout_s:g} s (cluster.start_timeout_s)"
                )
            device = device_of(layout, resources)
            if device.profile == "cpu":
                check_execution(self.config, "cpu")
            self.tell_device(device)
            with demanded(layout, left, beside=replicas):
                self._start_actors(layout, self.parts.expect(device.known), replicas)
                try:
                    with self.ending_in_order():
                        self._loop(stop)
                except (ObjectStoreFullError, OutOfDiskError) as error:
                    self.end(
                        RunFailedError,
                        f"Ray's object store is full ({reason_of(error)}); give it more memory or disk "
                        "(ray start --object-store-memory, --object-spilling-directory), or lower "
                        "output.rows_per_part",
                    )
                finally:
                    self.cells.stop(in_order=not self.is_pressed)
                    self.writer.stop()
                    if self.verifiers is not None:
                        self.verifiers.stop()

    def _start_actors(self, layout: WorkerLayout, workload: Workload | None, replicas: WorkerLayout) -> None:
        cluster = self.config.cluster
        self.stats.wanted = layout.count
        shares = divide_workers(layout.count, cluster.workers_per_cell)
        each = describe_resources({"CPU": layout.cpus, "GPU": layout.gpus})
        cells = f" in {len(shares)} cells" if len(shares) > 1 else ""
        # Two runs may have folders of one name.
        prefix = f"{self.run_name}-{uuid.uuid4().hex[:6]}-"
        workers = f"{layout.count} worker{'s' * (layout.count != 1)}"
        logger.info("starting %s of %s%s, named %s*", workers, each, cells, prefix)
        settings = coordinator_settings(self.config)
        build_engine = PackedBuilder.pack(self.parts.build_engine)
        if replicas.count:
            # Asked for before the workers, which wait for them.
            self.verifiers = VerifierPool(
                self.parts, replicas, actor_prefix=prefix, settings=self.config.verifiers
            )
            build_engine = PackedBuilder.pack(self.verifiers.build_engine)

        def make_spec(index: int, incarnation: int) -> CellSpec:
            share = shares[index]
            return CellSpec(
                cell_id=f"cell-{index}" + (f".{incarnation}" if incarnation else ""),
                incarnation=incarnation,
                plan=self.parts.plan,
                run_seed=self.config.seed,
                settings=settings,
                workload=workload,
                build_engine=build_engine,
                layout=WorkerLayout(count=len(share), cpus=layout.cpus, gpus=layout.gpus),
                first_worker=share.start,
                actor_prefix=prefix,
            )

        self.metrics = RunMetrics(prefix.rstrip("-"))
        self.leases = LeasePolicy(self.ledger, rows_per_chunk=self.config.output.rows_per_part)
        self.writer = PartWriter(
            self.layout, lock_token=self.lock.token, actor_prefix=prefix, notice=self.notice
        )
        # One cell sits beside the driver, whose node must live anyway; many share the work of many nodes.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.cells = Cells(make_spec, len(shares), scheduling=here if len(shares) == 1 else "SPREAD")

    def _loop(self, stop: StopRequest) -> None:
        clock = PatientClock()
        last_worker_at = 0.0
        while not self.ledger.is_done:
            now = clock()
            self.cells.start_due(now)
            refs = [*self.cells.updates, *self.writer.pending]
            ready = _wait(refs)
            if stop.reason is not None:
                self.is_pressed = is_submitted_job()
                left = stop.seconds_left(COMMIT_TIMEOUT_SECONDS)
                self.end(InterruptedRunError, f"stopped by {stop.reason}", grace_seconds=left)
            self.lock.check()
            for ref in ready:
                self._on_ready(ref)
            for cell_id, news in self.cells.news(ready, now):
                if isinstance(news, CellLost):
                    self._on_cell_lost(cell_id, news)
                else:
                    self._on_update(cell_id, news, now)
            for cell_id, lease in self.leases.hand_out(now):
                self.cells.lease(cell_id, lease.prompts, lease.is_last)
            self.stats.set_workers(self.cells.num_workers)
            last_worker_at = now if self.stats.workers else last_worker_at
            self._check_workers(now - last_worker_at)
            self.report()

    def _on_update(self, cell_id: str, update: CellUpdate, now: float) -> None:
        for notice in update.notices:
            self.notice(notice)
        for info in update.joined:
            logger.info("%s is up on %s (process %d)", info.worker_id, info.node_ip, info.pid)
            self.info = self.info or info
            self.joined(info.device)
        if update.state is CellState.UNUSABLE and self.info is None:
            raise CannotStartError(
                f"{update.reason}. This session generated nothing; mend that, then type the same command"
            )
        self.leases.set_workers(cell_id, update.workers)
        for count in update.lease_requests:
            self.leases.ask(cell_id, count)
        for outcome in update.outcomes:
            self._on_outcome(cell_id, outcome, now)

    def _on_outcome(self, cell_id: str, outcome: PromptResult | PromptFailure, now: float) -> None:
        receipt = self.ledger.add(cell_id, outcome)
        if not receipt.is_new:
            logger.info("prompt %s was finished twice; %s was later", outcome.prompt.key, cell_id)
            return
        for other in receipt.withdraw_from:
            self.cells.withdraw(other, (outcome.prompt.key,))
        if receipt.leased_at is not None:
            self.leases.delivered(now - receipt.leased_at)
        self.count(outcome)
        self.metrics.outcome(outcome, left=self.stats.prompts_left)
        if receipt.whole is not None:
            self._write(receipt.whole)
        self.judge(outcome)

    def _on_cell_lost(self, cell_id: str, lost: CellLost) -> None:
        returned = self.leases.lose_cell(cell_id)
        then = "it is started anew" if lost.comes_back else "it is given up"
        self.notice(
            f"{cell_id} is lost ({lost.reason}); its {returned} unfinished prompts are run again, and {then}"
        )

    def _write(self, chunk: WholeChunk) -> None:
        assert self.info is not None, "outcomes come from workers, which have joined"
        self.writer.write(chunk, self.context(model=self.info.model_name, reward_name=self.info.reward_name))

    def _on_ready(self, ref: Any) -> None:
        try:
            written = self.writer.collect(ref)
        except PartError as error:
            self.end(RunFailedError, str(error))
        if written is not None:
            self._on_written(*written)

    def _on_written(self, chunk: WholeChunk, report: ChunkReport | LostImages) -> None:
        if isinstance(report, ChunkReport):
            self.committed(chunk.chunk_index)
            self.metrics.committed()
            return
        self.notice(
            f"images of {len(report.rows)} prompts of part {report.chunk_index} are lost ({report.reason}); "
            "they are generated again"
        )
        for outcome in chunk.finished:
            if outcome.prompt.row in report.rows:
                self.stats.take_back(outcome)
        self.ledger.reopen(report.rows)

    def _check_workers(self, seconds_without_workers: float) -> None:
        """End a run that nobody works for and nobody will."""
        failure = self.cells.failure
        if failure is not None:
            # Where the disk of Ray's own files is full, its processes die without a word of that.
            folder = os.environ.get("RAY_TMPDIR") or ray_folder() or tempfile.gettempdir()
            with contextlib.suppress(OSError):  # none of this machine, where the cluster is elsewhere
                free = shutil.disk_usage(folder).free / 1e6
                failure += f"; {folder}, where Ray writes, has {free:,.1f} MB free"
            self.end(RunFailedError, failure)
        limit = self.config.cluster.start_timeout_s
        if seconds_without_workers >= limit:
            self.end(
                RunFailedError,
                f"no worker was up for {limit:g} s (cluster.start_timeout_s); the cluster has "
                f"{describe_cluster()}",
            )

    def end(
        self, kind: type[TtsVarError], what: str, *, grace_seconds: float = COMMIT_TIMEOUT_SECONDS
    ) -> NoReturn:
        """Commit what is whole, keep what is finished, then raise."""
        deadline = time.monotonic() + grace_seconds
        for chunk, report in self.writer.flush(grace_seconds):
            if isinstance(report, ChunkReport):
                self.committed(chunk.chunk_index)
        kept = 0
        if self.info is not None:
            context = self.context(model=self.info.model_name, reward_name=self.info.reward_name)
            kept = self.writer.keep(self.ledger.unfinished(), context, deadline - time.monotonic())
        raise kind(how_to_go_on(self.layout, self.ledger, what, kept=kept))


def _wait(refs: list[Any]) -> list[Any]:
    """Return all references that are ready, after at most a second."""
    if not refs:
        time.sleep(POLL_SECONDS)
        return []
    ray.wait(refs, num_returns=1, timeout=POLL_SECONDS)
    return ray.wait(refs, num_returns=len(refs), timeout=0)[0]
