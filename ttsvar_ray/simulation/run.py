"""Simulate a whole run: the real coordinators and the real ledger, simulated workers and time.

Discrete events: workers start, answer and are lost; coordinators take in one event after the other; the
driver leases prompts and takes in outcomes; a writer writes parts. What is not simulated: the network's
load, the transport of images, differences between prompts, and losses of coordinators and of the driver.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from ttsvar_ray.coordination.coordinator import Coordinator
from ttsvar_ray.coordination.messages import Tick, WorkerLost
from ttsvar_ray.coordination.settings import CoordinatorSettings, Workload, rows_by_segment
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.simulation.cells import SimulatedCell, Traffic, World
from ttsvar_ray.simulation.driver import SimulatedDriver
from ttsvar_ray.simulation.result import BytesMoved, CoordinatorLoad, Latency, LogHistogram, SimulationResult
from ttsvar_ray.simulation.settings import SimulationSettings
from ttsvar_ray.simulation.stand_ins import CountedSelections, ReportMaker
from ttsvar_ray.simulation.workers import COMPUTING, Clock, SimulatedWorker, Spent, Utilization

CHEAP_FEATURE_DIM = 1
"""Numbers in the features that nobody looks at."""


def simulate(
    *,
    plan: Plan,
    workload: Workload,
    settings: SimulationSettings,
    coordinator: CoordinatorSettings,
    progress: Callable[[int, float], None] = lambda finished, seconds: None,
    stopwatch: Callable[[], float] | None = None,
) -> SimulationResult:
    """Simulate one run to its end.

    Args:
        plan: what every prompt runs.
        workload: what its segments cost.
        settings: the cluster, its faults and its speed.
        coordinator: policies of the coordinators.
        progress: told the number of finished prompts after each, and the simulated seconds so far.
        stopwatch: seconds of a real clock; with it, the real time of the coordinators is measured.

    Raises:
        ConfigurationError: a workload of another plan, or workers without memory for one trajectory.
    """
    return _Run(plan, workload, settings, coordinator, progress, stopwatch).result()


class _Run:
    def __init__(
        self,
        plan: Plan,
        workload: Workload,
        settings: SimulationSettings,
        coordinator: CoordinatorSettings,
        progress: Callable[[int, float], None],
        stopwatch: Callable[[], float] | None,
    ) -> None:
        if len(workload.segments) != len(plan.segments):
            raise ConfigurationError(
                f"simulation: expected a workload of the plan's {len(plan.segments)} segments, got one of "
                f"{len(workload.segments)}; measure or build it for this plan"
            )
        self._plan = plan
        self._settings = settings
        self._coordinator = coordinator
        self._progress = progress
        self._world = World(
            settings=settings,
            workload=workload,
            clock=Clock(),
            utilization=Utilization(),
            traffic=Traffic(plan, workload, settings.payload),
            reports=ReportMaker(
                plan,
                seed=settings.seed,
                feature_dim=settings.payload.feature_dim
                if settings.selections == "real"
                else CHEAP_FEATURE_DIM,
                most_rows=max(rows_by_segment(settings.rows, plan)),
            ),
            noise=random.Random(f"{settings.seed} noise"),
            # The relative deviation of a log-normal is sqrt(exp(sigma^2) - 1).
            noise_sigma=math.sqrt(math.log1p(settings.noise**2)),
            latency=LogHistogram(),
            stopwatch=stopwatch,
        )
        self._faults = random.Random(f"{settings.seed} faults")
        self._workers_lost = 0
        self._steady_from = settings.start_seconds + settings.start_spread_seconds
        self._finished_before_steady = 0
        self._finished_before_tail: int | None = None
        self._driver = SimulatedDriver(self._world, self._on_prompt)
        for index in range(settings.num_cells):
            cell = self._make_cell(f"cell-{index}", index)
            self._driver.cells[cell.cell_id] = cell
        self._cells = list(self._driver.cells.values())
        self._workers = self._make_workers()
        self._start()

    def result(self) -> SimulationResult:
        """Let the run go on to its end, and say how it went."""
        clock = self._world.clock
        while not self._driver.is_done:
            assert clock.advance(), "nothing is due although prompts are left"
        end = clock.now
        exhausted_at = self._world.exhausted_at
        assert exhausted_at is not None
        for worker in self._workers:
            worker.stop(end, self._world.utilization, exhausted_at)
        return self._summary(end, exhausted_at)

    # What happens by itself.

    def _make_cell(self, cell_id: str, index: int) -> SimulatedCell:
        settings = self._settings
        selections = CountedSelections(settings.seed + index if settings.selections == "cheap" else None)
        return SimulatedCell(
            cell_id=cell_id,
            coordinator=Coordinator(
                plan=self._plan,
                run_seed=settings.seed,
                settings=self._coordinator,
                workload=self._world.workload,
                selections=selections,
            ),
            selections=selections,
            world=self._world,
            tell_driver=self._driver.take_in,
            replace_worker=self._lose,
        )

    def _make_workers(self) -> list[SimulatedWorker]:
        settings = self._settings
        chosen = random.Random(f"{settings.seed} stragglers")
        slow = set(chosen.sample(range(settings.gpus), round(settings.stragglers * settings.gpus)))
        return [
            SimulatedWorker(gpu=gpu, slowdown=settings.straggler_factor if gpu in slow else 1.0)
            for gpu in range(settings.gpus)
        ]

    def _start(self) -> None:
        settings, clock = self._settings, self._world.clock
        for worker in self._workers:
            late = self._faults.uniform(0.0, settings.start_spread_seconds)
            clock.at(settings.start_seconds + late, self._come_up, worker)
        for cell in self._cells:
            clock.at(settings.tick_seconds, self._tick, cell)
        self._driver.start()
        if settings.failures_per_node_hour:
            for node in range(-(-settings.gpus // settings.gpus_per_node)):
                self._plan_node_loss(node)

    def _tick(self, cell: SimulatedCell) -> None:
        clock = self._world.clock
        cell.handle(Tick(now=clock.now))
        clock.at(clock.now + self._settings.tick_seconds, self._tick, cell)

    def _come_up(self, worker: SimulatedWorker) -> None:
        settings, clock, utilization = self._settings, self._world.clock, self._world.utilization
        utilization.add(worker.absent, worker.idle_since, clock.now)
        worker.come_up(clock.now)
        clock.at(clock.now + settings.call_seconds, self._join, worker, worker.incarnation)
        if settings.failures_per_gpu_hour:
            lifetime = self._faults.expovariate(settings.failures_per_gpu_hour / 3600.0)
            clock.at(clock.now + lifetime, self._fail, worker, worker.incarnation)

    def _join(self, worker: SimulatedWorker, incarnation: int) -> None:
        if worker.is_up and worker.incarnation == incarnation:
            cell = self._cell_of(worker)
            cell.join(worker)
            self._driver.set_workers(cell.cell_id, cell.num_workers)

    def _fail(self, worker: SimulatedWorker, incarnation: int) -> None:
        if worker.is_up and worker.incarnation == incarnation:
            self._lose(worker)

    def _lose(self, worker: SimulatedWorker) -> None:
        """End a worker with all that it holds; another one follows later."""
        settings, clock, utilization = self._settings, self._world.clock, self._world.utilization
        self._workers_lost += 1
        cell = self._cell_of(worker)
        lost = WorkerLost(worker_id=worker.worker_id, reason="lost in the simulation")
        cell.leave(worker.worker_id)
        self._driver.set_workers(cell.cell_id, cell.num_workers)
        cause = Spent.OTHER_SHARDS if self._world.exhausted_at is None else Spent.TAIL
        worker.go_down(clock.now, utilization, cause)
        # What the worker said before comes first.
        known_at = clock.now + max(settings.detection_seconds, settings.call_seconds)
        clock.at(known_at, cell.handle, lost)
        clock.at(known_at + settings.restart_seconds, self._come_up, worker)

    def _plan_node_loss(self, node: int) -> None:
        clock = self._world.clock
        lifetime = self._faults.expovariate(self._settings.failures_per_node_hour / 3600.0)
        clock.at(clock.now + lifetime, self._lose_node, node)

    def _lose_node(self, node: int) -> None:
        per_node = self._settings.gpus_per_node
        for worker in self._workers[node * per_node : (node + 1) * per_node]:
            if worker.is_up:
                self._lose(worker)
        self._plan_node_loss(node)

    def _cell_of(self, worker: SimulatedWorker) -> SimulatedCell:
        return self._cells[self._settings.cell_of(worker.gpu)]

    # What it amounts to.

    def _on_prompt(self, finished: int) -> None:
        if self._world.clock.now <= self._steady_from:
            self._finished_before_steady = finished
        if self._world.exhausted_at is None:
            self._finished_before_tail = finished
        self._progress(finished, self._world.clock.now)

    def _summary(self, end: float, exhausted_at: float) -> SimulationResult:
        settings, world, driver = self._settings, self._world, self._driver
        utilization, traffic = world.utilization, world.traffic
        # Useful was everything that was computed to its end; what nobody took in was not, after all.
        utilization.rebook(Spent.USEFUL, Spent.LOST, utilization.total(Spent.USEFUL) - driver.useful_seconds)
        paid = settings.gpus * end
        loads = [cell.busy_seconds / end for cell in self._cells]
        decisions = sum(cell.decisions for cell in self._cells)
        steady = exhausted_at - self._steady_from
        between = (self._finished_before_tail or 0) - self._finished_before_steady
        return SimulationResult(
            settings=settings,
            spread=self._coordinator.spread,
            strategy=self._plan.strategy,
            workload_source=world.workload.source,
            makespan_seconds=end,
            prompts=driver.finished,
            failed=driver.failed,
            images=driver.images,
            prompts_per_second=driver.finished / end,
            images_per_second=driver.images / end,
            ideal_prompts_per_second=settings.gpus
            / seconds_per_prompt(self._plan, world.workload, rows=settings.rows),
            steady_prompts_per_second=between / steady if steady > 0 else math.nan,
            utilisation=utilization.total(*COMPUTING) / paid,
            goodput_utilisation=utilization.total(Spent.USEFUL) / paid,
            steady_utilisation=utilization.share_within(self._steady_from, exhausted_at, COMPUTING),
            seconds={spent.value: utilization.total(spent) for spent in Spent},
            latency=Latency(
                p50=world.latency.quantile(0.5), p95=world.latency.quantile(0.95), most=world.latency.largest
            ),
            coordinator=CoordinatorLoad(
                decisions=decisions,
                mean=sum(loads) / len(loads),
                most=max(loads),
                wait_mean=max(cell.waits.mean for cell in self._cells),
                wait_p95=max(cell.waits.quantile(0.95) for cell in self._cells),
            ),
            bytes_moved=BytesMoved(
                bits_reported=traffic.bits_reported,
                bits_sent=traffic.bits_sent,
                features=traffic.feature_bytes,
                images=driver.images * settings.payload.image_bytes,
            ),
            batches=traffic.batches,
            rows_per_batch=traffic.rows / traffic.batches,
            replays=traffic.replays,
            moved=driver.moved,
            survivors=driver.survivors,
            workers_lost=self._workers_lost,
            writer_load=driver.writing_seconds / end,
            late_outcomes=driver.ledger.num_late,
            measured_decision_seconds=(
                world.stopwatch_seconds / decisions if world.stopwatch is not None else math.nan
            ),
            bin_seconds=utilization.bin_seconds,
            timeline=utilization.timeline(),
        )


def seconds_per_prompt(plan: Plan, workload: Workload, *, rows: int | tuple[int, ...]) -> float:
    """Return the GPU seconds of one prompt where every micro-batch is full and nothing is replayed."""
    full = rows_by_segment(rows, plan)
    return sum(
        segment.population * (load.row_seconds + load.batch_seconds / (load.pass_rows or most))
        for segment, load, most in zip(plan.segments, workload.segments, full, strict=True)
    )
