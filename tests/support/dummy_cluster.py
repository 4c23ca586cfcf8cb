"""A cluster of dummy engines without time: every event may come late, twice, or after a death.

`DummyCluster` carries out a coordinator's actions and checks, at each of them, that the invariants of
`ttsvar_ray.coordination.coordinator` hold. Whoever drives it decides what happens next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from typing_extensions import assert_never

from tests.support.dummy_engine import DummyEngine, FaultOf, reference_outcome
from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.coordinator import Coordinator
from ttsvar_ray.coordination.messages import (
    Abandon,
    Action,
    BatchDone,
    Emit,
    Event,
    LeasePrompts,
    PromptsLeased,
    PromptsWithdrawn,
    Refuse,
    Release,
    RunBatch,
    SegmentReport,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from ttsvar_ray.coordination.settings import CoordinatorSettings, Workload
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.selection import Select
from ttsvar_ray.search.strategy import compile_plan
from ttsvar_ray.types import Prompt


@dataclass(slots=True)
class DummyWorker:
    """One worker: what it was asked, in order, and what it holds.

    Attributes:
        slowdown: how many times longer its batches take, as its reports say.
    """

    engine: DummyEngine
    rows: int
    memory_bytes: int | None = None
    queue: deque[RunBatch | Release] = field(default_factory=deque)
    in_flight: set[int] = field(default_factory=set)
    is_draining: bool = False
    is_hung: bool = False
    slowdown: float = 1.0
    is_abandoned: bool = False


class DummyCluster:
    """Workers, mail and leases around one coordinator."""

    def __init__(
        self,
        *,
        plan: Plan,
        run_seed: int,
        settings: CoordinatorSettings,
        prompts: Sequence[Prompt],
        fault_of: FaultOf = lambda task: None,
        workload: Workload | None = None,
        selections: Select | None = None,
    ) -> None:
        self.plan = plan
        self.settings = settings
        self.workload = workload
        self.coordinator = Coordinator(
            plan=plan, run_seed=run_seed, settings=settings, workload=workload, selections=selections
        )
        self.workers: dict[str, DummyWorker] = {}
        self.mail: list[BatchDone] = []
        self.outcomes: dict[str, PromptResult | PromptFailure] = {}
        self.actions: list[Action] = []
        self.lease_requests: list[int] = []
        self.refused: dict[str, str] = {}
        self.now = 0.0
        # Injected failures make a worker hold what the coordinator was told it does not.
        self.checks_rows = True
        self._prompts = tuple(prompts)
        self._source = deque(prompts)
        self._run_seed = run_seed
        self._fault_of = fault_of
        self._batch_ids: set[int] = set()
        self._leased: set[str] = set()
        self._told_last = False
        self._largest_population = plan.widest.segments[0].population

    # What may happen.

    def join(self, worker_id: str, rows: int, memory_bytes: int | None = None) -> None:
        """Start a worker without state."""
        engine = DummyEngine(plan=self.plan, run_seed=self._run_seed, fault_of=self._fault_of)
        self.workers[worker_id] = DummyWorker(engine=engine, rows=rows, memory_bytes=memory_bytes)
        self.tell(WorkerJoined(worker_id=worker_id, rows=rows, memory_bytes=memory_bytes))

    def lose(self, worker_id: str) -> None:
        """End a worker; what it has mailed may still arrive."""
        del self.workers[worker_id]
        self.tell(WorkerLost(worker_id=worker_id, reason="killed by the test"))

    def drain(self, worker_id: str) -> None:
        """Announce a worker's end."""
        self.workers[worker_id].is_draining = True
        self.tell(WorkerDraining(worker_id=worker_id))

    def tick(self, seconds: float) -> None:
        """Let time go on."""
        self.now += seconds
        self.tell(Tick(now=self.now))

    def withdraw(self, prompt_keys: Sequence[str], *, comes_back: bool) -> None:
        """Say that prompts were finished elsewhere; they may be leased again."""
        keys = frozenset(prompt_keys)
        gone = [prompt for prompt in self._prompts if prompt.key in keys and prompt.key in self._leased]
        gone = [prompt for prompt in gone if prompt.key not in self.outcomes]
        self._leased -= {prompt.key for prompt in gone}
        self.tell(PromptsWithdrawn(prompt_keys=tuple(prompt_keys)))
        if comes_back and gone:
            self._source.extend(gone)
            if self._told_last:
                self.hand_over()

    def add_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Find more to lease."""
        self._prompts += tuple(prompts)
        self._source.extend(prompts)

    def hand_over(self) -> None:
        """Lease all that is left, unasked."""
        prompts = tuple(self._source)
        self._source.clear()
        self._leased |= {prompt.key for prompt in prompts}
        self.tell(PromptsLeased(prompts=prompts, is_last=True))

    def work(self, worker_id: str) -> None:
        """Let a worker carry out the next thing it was asked, and mail the result."""
        worker = self.workers[worker_id]
        item = worker.queue.popleft()
        if isinstance(item, Release):
            worker.engine.release(item.prompt_key, item.attempt)
            return
        results = tuple(worker.engine.run_segment(item.tasks))
        if worker.slowdown != 1.0:
            results = tuple(
                replace(result, seconds=result.seconds * worker.slowdown)
                if isinstance(result, SegmentReport)
                else result
                for result in results
            )
        self._check_memory(worker, item)
        self.mail.append(BatchDone(worker_id=worker_id, batch_id=item.batch_id, results=results))

    def deliver(self, index: int, *, keep_copy: bool = False) -> None:
        """Hand one result to the coordinator; a kept copy arrives again."""
        event = self.mail[index] if keep_copy else self.mail.pop(index)
        if event.worker_id in self.workers:
            self.workers[event.worker_id].in_flight.discard(event.batch_id)
        self.tell(event)

    def lease(self, most: int) -> None:
        """Answer the coordinator's request with up to `most` prompts."""
        count = min(self.lease_requests.pop(), most)
        prompts = tuple(self._source.popleft() for _ in range(min(count, len(self._source))))
        self._leased |= {prompt.key for prompt in prompts}
        self._told_last = not self._source
        self.tell(PromptsLeased(prompts=prompts, is_last=self._told_last))

    def settle(self) -> None:
        """Let everything go on in order, without faults, until nothing more happens."""
        for _ in range(1_000_000):
            if self.lease_requests:
                self.lease(most=1_000)
            elif self.mail:
                self.deliver(0)
            elif busy := [name for name, worker in self.workers.items() if worker.queue]:
                self.work(busy[0])
            else:
                return
        raise AssertionError("the run does not end")

    def tell(self, event: Event) -> None:
        """Hand an event to the coordinator, check its actions and carry them out."""
        for action in self.coordinator.handle(event):
            self.actions.append(action)
            self._carry_out(action)
        if self.workload is not None:
            self._check_reserved()

    # What must hold.

    def check_finished(self) -> None:
        """Everything leased was emitted, and no worker holds or runs anything."""
        assert self.coordinator.is_done
        assert set(self.outcomes) == self._leased
        assert not self._source
        assert not self.coordinator.view.live
        assert not self.coordinator.view.waiting
        for name, worker in self.workers.items():
            if worker.is_hung:
                assert not worker.in_flight, f"{name} hangs, and nobody waits for it any more"
                continue
            assert not worker.queue, f"{name} was left with work"
            assert not worker.engine.held_attempts, f"{name} was never told to release"

    def _carry_out(self, action: Action) -> None:
        match action:
            case Emit(outcome=outcome):
                key = outcome.prompt.key
                assert key in self._leased
                assert key not in self.outcomes, f"{key} was emitted twice"
                self.outcomes[key] = outcome
            case LeasePrompts(count=count):
                assert count > 0
                assert not self.lease_requests, "asked again before the answer"
                assert not self._told_last, "asked after the last prompt"
                self.lease_requests.append(count)
            case Refuse(worker_id=worker_id, reason=reason):
                del self.workers[worker_id]
                self.refused[worker_id] = reason
            case Abandon(worker_id=worker_id):
                assert not self.workers[worker_id].is_abandoned, "abandoned twice"
                self.workers[worker_id].is_abandoned = True
            case RunBatch(worker_id=worker_id) | Release(worker_id=worker_id):
                assert worker_id in self.workers, "action for a worker that is gone"
                if isinstance(action, RunBatch):
                    self._check_batch(self.workers[worker_id], action)
                self.workers[worker_id].queue.append(action)
            case _:
                assert_never(action)

    def _check_batch(self, worker: DummyWorker, batch: RunBatch) -> None:
        assert not worker.is_draining, "new work for a draining worker"
        assert not worker.is_abandoned, "new work for an abandoned worker"
        assert batch.batch_id not in self._batch_ids, "a batch id was used twice"
        self._batch_ids.add(batch.batch_id)
        assert len({task.segment_index for task in batch.tasks}) == 1
        rows = sum(len(task.slots) for task in batch.tasks)
        assert 1 <= rows <= worker.rows
        if self.settings.batch_tokens is not None:
            segment = self.plan.segments[batch.tasks[0].segment_index]
            scales = self.plan.scale_schedule[segment.first_scale : segment.last_scale + 1]
            tokens = sum(height * width for height, width in scales)
            assert rows == 1 or rows * tokens <= self.settings.batch_tokens
        assert all(task.prompt.key not in self.outcomes for task in batch.tasks), "work for an emitted prompt"
        worker.in_flight.add(batch.batch_id)
        assert len(worker.in_flight) <= self.settings.batches_in_flight

    def _check_reserved(self) -> None:
        for worker in self.coordinator.view.workers:
            memory = self.workers[worker.worker_id].memory_bytes
            running = max((batch.memory for batch in worker.batches.values()), default=0)
            if memory is not None:
                assert worker.reserved + running <= memory, "more is reserved than there is"

    def check_accounts(self) -> None:
        """What is reserved on a worker is what the live prompts need there, counted again from nothing."""
        view = self.coordinator.view
        for worker in view.workers:
            needed = {key: view.live[key].needed(worker) for key in view.live}
            assert worker.reserved == sum(needed.values())
            for key, prompt in view.live.items():
                assert prompt.reserved.get(worker.worker_id, 0) == needed[key]

    def _check_memory(self, worker: DummyWorker, batch: RunBatch) -> None:
        if self.workload is None or worker.memory_bytes is None:
            within = worker.engine.num_held <= self._live_limit(worker)
            assert within or not self.checks_rows, "a worker holds too much"
            return
        # Afterwards everything is held that was held or made while the batch ran.
        load = self.workload.segments[batch.tasks[0].segment_index]
        rows = sum(len(task.slots) for task in batch.tasks)
        extra = rows * max(0, load.running_bytes - load.held_bytes)
        if load.pass_rows:
            # What is held was taken out of the pass, which has states of its own.
            extra = load.pass_rows * load.running_bytes
        assert worker.engine.held_bytes(self.workload) + extra <= worker.memory_bytes, "out of memory"

    def _live_limit(self, worker: DummyWorker) -> int:
        usual = (self.settings.batches_in_flight + 2) * worker.rows
        return max(self.settings.live_rows or usual, self._largest_population)


FOUR_SCALES = compile_plan(
    scale_schedule=((1, 1), (2, 2), (3, 3), (4, 4)),
    strategy="tts-var",
    batch_schedule=[8, 6, 2, 2],
    cluster_scales=[1],
    resample_scales=[2],
    cluster_restarts=1,
)


def make_cluster(
    prompts: int,
    workers: Sequence[int] = (),
    *,
    memory: Sequence[int | None] = (),
    workload: Workload | None = None,
    fault_of: FaultOf = lambda task: None,
    **settings: Any,
) -> DummyCluster:
    """Return a cluster of the plan of four scales with one worker per entry of `workers`, its rows."""
    cluster = DummyCluster(
        plan=FOUR_SCALES,
        run_seed=0,
        settings=CoordinatorSettings(**{"spread": 1, "keep": "all", **settings}),
        prompts=make_prompts(prompts),
        fault_of=fault_of,
        workload=workload,
    )
    for index, rows in enumerate(workers):
        cluster.join(f"w{index}", rows, memory[index] if memory else None)
    return cluster


def check_all_correct(cluster: DummyCluster) -> None:
    """Every prompt has the images of the sequential search, and all memory is accounted for."""
    cluster.check_accounts()
    cluster.check_finished()
    for key, outcome in cluster.outcomes.items():
        assert isinstance(outcome, PromptResult), outcome
        found = [(i.image.payload, i.reward, i.reward_history, i.lineage, i.bits) for i in outcome.images]
        assert found == [image[:5] for image in reference_outcome(FOUR_SCALES, 0, key).images]
