"""A simulated cell: the real coordinator, which answers one event after the other and takes its time.

    worker --answer--> queue of the cell --handle--> orders --call_seconds--> worker
                                            '--update--driver_seconds--> driver

Only the time that a decision takes is made up; what is decided is the coordinator's own doing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from typing_extensions import assert_never

from ttsvar_ray.coordination.coordinator import Coordinator
from ttsvar_ray.coordination.messages import (
    Abandon,
    Action,
    BatchDone,
    Emit,
    Event,
    LeasePrompts,
    PromptsLeased,
    Refuse,
    Release,
    RunBatch,
    Tick,
    WorkerJoined,
)
from ttsvar_ray.coordination.settings import Workload
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.simulation.result import LogHistogram
from ttsvar_ray.simulation.settings import PayloadSizes, SimulationSettings
from ttsvar_ray.simulation.stand_ins import CountedSelections, ReportMaker
from ttsvar_ray.simulation.workers import Clock, RunningBatch, SimulatedWorker, Spent, Utilization


class Traffic:
    """Counts of micro-batches, trajectories, replays, and bytes by kind.

    Attributes:
        batches: micro-batches that were sent.
        rows: trajectories in them.
        replays: distinct parents whose bits were sent along, to be rebuilt.
        bits_reported, feature_bytes: bytes to the coordinator.
        bits_sent: bytes to workers, for replays.
    """

    def __init__(self, plan: Plan, workload: Workload, payload: PayloadSizes) -> None:
        self.batches = 0
        self.rows = 0
        self.replays = 0
        self.bits_reported = 0
        self.bits_sent = 0
        self.feature_bytes = 0
        self._segment_bits = [load.tokens * payload.bits_per_token // 8 for load in workload.segments]
        self._past_bits = [sum(self._segment_bits[:index]) for index in range(len(self._segment_bits))]
        self._feature_bytes = [
            4 * payload.feature_dim * (Signal.FEATURES in segment.reads) for segment in plan.segments
        ]

    def sent(self, segment_index: int, rows: int, replayed: int) -> None:
        """Count a micro-batch and the answer that it will get."""
        self.batches += 1
        self.rows += rows
        self.replays += replayed
        self.bits_sent += replayed * self._past_bits[segment_index]
        self.bits_reported += rows * self._segment_bits[segment_index]
        self.feature_bytes += rows * self._feature_bytes[segment_index]


@dataclass(slots=True, kw_only=True)
class World:
    """What all cells of a simulated run share."""

    settings: SimulationSettings
    workload: Workload
    clock: Clock
    utilization: Utilization
    traffic: Traffic
    reports: ReportMaker
    noise: random.Random
    noise_sigma: float
    latency: LogHistogram
    exhausted_at: float | None = None
    stopwatch: Callable[[], float] | None = None
    stopwatch_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellUpdate:
    """What a cell tells the driver after one event."""

    outcomes: tuple[PromptResult | PromptFailure, ...]
    lease_requests: tuple[int, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class SimulatedCell:
    """One coordinator with its workers.

    Attributes:
        selections: what the coordinator selects with; tells how many a decision took.
        world: shared by all cells.
        tell_driver: takes a cell's update.
        replace_worker: ends a worker that the coordinator gave up.
    """

    cell_id: str
    coordinator: Coordinator
    selections: CountedSelections
    world: World
    tell_driver: Callable[[str, CellUpdate], None]
    replace_worker: Callable[[SimulatedWorker], None]
    busy_seconds: float = 0.0
    decisions: int = 0
    waits: LogHistogram = field(default_factory=LogHistogram)
    _free_at: float = 0.0
    _workers: dict[str, SimulatedWorker] = field(default_factory=dict)
    _begun: dict[str, float] = field(default_factory=dict)

    @property
    def num_workers(self) -> int:
        """Workers that are up."""
        return len(self._workers)

    def join(self, worker: SimulatedWorker) -> None:
        """Take in what a new worker says when it is ready."""
        settings = self.world.settings
        self._workers[worker.worker_id] = worker
        worker.handled_at = self.handle(
            WorkerJoined(worker_id=worker.worker_id, rows=settings.rows, memory_bytes=settings.memory_bytes)
        )

    def leave(self, worker_id: str) -> None:
        """Send nothing more to a worker that is gone, though the coordinator does not know it yet."""
        self._workers.pop(worker_id, None)

    def handle(self, event: Event) -> float:
        """Let the coordinator take in an event that arrives now; return when its orders arrive."""
        world = self.world
        now, costs = world.clock.now, world.settings.coordinator
        start = max(now, self._free_at)
        self.waits.add(start - now)
        self.decisions += 1
        with_features, others = self.selections.with_features, self.selections.others
        before = world.stopwatch() if world.stopwatch is not None else 0.0
        actions = self.coordinator.handle(event)
        if world.stopwatch is not None:
            world.stopwatch_seconds += world.stopwatch() - before
        shards = len(event.results) if isinstance(event, BatchDone) else 0
        # A look at the time comes from within: no message.
        message = 0.0 if isinstance(event, Tick) else costs.message_seconds
        seconds = (
            message
            + shards * costs.shard_seconds
            + (self.selections.with_features - with_features) * costs.cluster_seconds
            + (self.selections.others - others) * costs.resample_seconds
        )
        self.busy_seconds += seconds
        self._free_at = start + seconds
        cause = Spent.NO_PROMPTS if isinstance(event, PromptsLeased) else Spent.OTHER_SHARDS
        self._carry_out(actions, cause)
        return self._free_at + world.settings.call_seconds

    def _carry_out(self, actions: list[Action], cause: Spent) -> None:
        outcomes: list[PromptResult | PromptFailure] = []
        lease_requests: list[int] = []
        world = self.world
        for action in actions:
            match action:
                case RunBatch():
                    self._send(action, cause)
                case Emit(outcome=outcome):
                    outcomes.append(outcome)
                    begun = self._begun.pop(outcome.prompt.key, None)
                    if begun is not None:
                        world.latency.add(self._free_at - begun)
                case LeasePrompts(count=count):
                    lease_requests.append(count)
                case Abandon(worker_id=worker_id):
                    worker = self._workers.get(worker_id)
                    if worker is not None:
                        world.clock.at(self._free_at, self._abandon, worker, worker_id)
                case Refuse(reason=reason):
                    raise ConfigurationError(f"simulation: {reason}")
                case Release():
                    # Memory is free at once.
                    pass
                case _:
                    assert_never(action)
        if outcomes or lease_requests:
            update = CellUpdate(outcomes=tuple(outcomes), lease_requests=tuple(lease_requests))
            arrival = self._free_at + world.settings.driver_seconds
            world.clock.at(arrival, self.tell_driver, self.cell_id, update)

    def _abandon(self, worker: SimulatedWorker, worker_id: str) -> None:
        if worker.is_up and worker.worker_id == worker_id:
            self.replace_worker(worker)

    def _send(self, batch: RunBatch, cause: Spent) -> None:
        """Send a micro-batch; its start and its end follow from what the worker has to do before."""
        world = self.world
        segment_index = batch.tasks[0].segment_index
        if segment_index == 0:
            for task in batch.tasks:
                self._begun.setdefault(task.prompt.key, self._free_at)
        rows = sum(len(task.slots) for task in batch.tasks)
        replayed = sum(len(task.parent_bits) for task in batch.tasks)
        world.traffic.sent(segment_index, rows, replayed)
        worker = self._workers.get(batch.worker_id)
        if worker is None:
            return
        predicted = world.workload.seconds(segment_index, rows, replayed)
        replay = world.workload.replay_seconds(segment_index, rows, replayed)
        seconds = predicted * worker.slowdown
        if world.noise_sigma:
            # A log-normal of mean 1.
            seconds *= world.noise.lognormvariate(-(world.noise_sigma**2) / 2, world.noise_sigma)
        start = max(self._free_at + world.settings.call_seconds, worker.free_at)
        running = RunningBatch(
            batch=batch,
            start=start,
            end=start + seconds,
            replay_share=replay / predicted if predicted else 0.0,
            cause=Spent.TAIL if cause is Spent.OTHER_SHARDS and world.exhausted_at is not None else cause,
        )
        worker.running.append(running)
        world.clock.at(running.end + world.settings.call_seconds, self._receive, worker, running, rows)

    def _receive(self, worker: SimulatedWorker, running: RunningBatch, rows: int) -> None:
        """Take in a worker's answer, unless the worker ended before it was done."""
        if running.is_lost:
            return
        world = self.world
        batch = running.batch
        useful = (running.end - running.start) * (1.0 - running.replay_share)
        reports = world.reports.answer(batch, useful / rows)
        is_present = bool(worker.running) and worker.running[0] is running
        if is_present:
            worker.finish(world.utilization)
        done = BatchDone(worker_id=batch.worker_id, batch_id=batch.batch_id, results=reports)
        handled_at = self.handle(done)
        if is_present:
            worker.handled_at = handled_at
