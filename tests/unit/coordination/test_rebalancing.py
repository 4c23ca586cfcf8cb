"""The end of a run: idle workers take what waits behind others, and slow workers are known as slow."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.dummy_cluster import DummyCluster
from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.assignment import rebalance
from ttsvar_ray.coordination.deadlines import Deadlines
from ttsvar_ray.coordination.decisions import Decision, Restart, Send, Start, Steal
from ttsvar_ray.coordination.messages import RunBatch
from ttsvar_ray.coordination.placement import Assignment
from ttsvar_ray.coordination.residency import Residency
from ttsvar_ray.coordination.settings import CoordinatorSettings, SegmentLoad, Spread, Workload
from ttsvar_ray.coordination.workers import MemoryModel, Worker
from ttsvar_ray.results import PromptResult, SelectionRecord
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.strategy import compile_plan
from ttsvar_ray.simulation.result import SimulationResult
from ttsvar_ray.simulation.run import simulate
from ttsvar_ray.simulation.settings import SimulationSettings

PLAN = compile_plan(scale_schedule=tuple((k, k) for k in (1, 2, 3, 4, 6)), strategy="best-of-n", n=2)


SEARCH = compile_plan(
    scale_schedule=tuple((k, k) for k in (1, 2, 3, 4, 6)),
    strategy="tts-var",
    batch_schedule=[4, 3, 3, 1, 1],
    cluster_scales=[1],
    resample_scales=[3],
    cluster_restarts=1,
)


def workload(replay_seconds: float = 0.0, plan: Plan = PLAN) -> Workload:
    """Return costs that are the same in every segment."""
    loads = [
        SegmentLoad(tokens=1, batch_seconds=0.0, row_seconds=1.0, replay_seconds=replay_seconds)
        for _ in plan.segments
    ]
    return Workload(segments=tuple(loads), source="a test")


def cluster_with_a_late_worker(
    *, spread: Spread = "auto", workload: Workload | None, prompts: int = 8, plan: Plan = PLAN, rows: int = 2
) -> DummyCluster:
    """Return a cluster whose first worker has all prompts, because the others were lost."""
    cluster = DummyCluster(
        plan=plan,
        run_seed=0,
        settings=CoordinatorSettings(spread=spread, batches_in_flight=1, live_rows=100),
        prompts=make_prompts(prompts),
        workload=workload,
    )
    others = [f"lost-{index}" for index in range(1, prompts)]
    for name in ["early", *others]:
        cluster.join(name, rows=rows)
    cluster.lease_requests.clear()
    cluster.hand_over()
    for name in others:
        cluster.lose(name)
    # Everything has begun and waits there, but for one batch.
    assert not cluster.coordinator.view.waiting
    early = cluster.coordinator.view.workers["early"]
    waiting = plan.segments[0].population * prompts - next(iter(early.batches.values())).num_rows
    assert early.backlog.num_rows == waiting
    return cluster


def finish(cluster: DummyCluster) -> Counter[str]:
    """Run to the end; return how many trajectories each worker ran."""
    ran: Counter[str] = Counter()
    while any(worker.queue for worker in cluster.workers.values()) or cluster.mail:
        for name, worker in list(cluster.workers.items()):
            if worker.queue:
                item = worker.queue[0]
                if isinstance(item, RunBatch):
                    ran[name] += sum(len(task.slots) for task in item.tasks)
                cluster.work(name)
        while cluster.mail:
            cluster.deliver(0, keep_copy=False)
    cluster.check_accounts()
    cluster.check_finished()
    assert all(isinstance(outcome, PromptResult) for outcome in cluster.outcomes.values())
    return ran


def test_an_idle_worker_takes_over_what_would_run_last() -> None:
    cluster = cluster_with_a_late_worker(workload=workload())
    cluster.join("late", rows=2)
    ran = finish(cluster)
    assert ran == {"early": 8, "late": 8}, "an even share, two trajectories at a time"


@pytest.mark.parametrize("spread", [1, 2])
def test_a_spread_that_was_asked_for_is_kept(spread: Spread) -> None:
    cluster = cluster_with_a_late_worker(workload=workload(), spread=spread)
    cluster.join("late", rows=2)
    assert finish(cluster)["late"] == 0


def test_without_known_costs_nothing_is_taken_over() -> None:
    cluster = cluster_with_a_late_worker(workload=None)
    cluster.join("late", rows=2)
    assert finish(cluster)["late"] == 0


def test_a_slowdown_is_learnt_bit_by_bit_and_weighs_what_is_left() -> None:
    worker = make_worker("w0")
    worker.backlog.push("p", 0, range(6), alone=False)
    assert (worker.slowdown, worker.load) == (1.0, 6.0)
    worker.learn_slowdown(10.0)
    assert 1.9 < worker.slowdown < 2.0, "one answer makes no slow worker"
    assert worker.load == pytest.approx(worker.slowdown * 6.0)
    for _ in range(9):
        worker.learn_slowdown(10.0)
    assert worker.slowdown > 9.0
    for _ in range(20):
        worker.learn_slowdown(1.0)
    assert worker.slowdown == pytest.approx(1.0, abs=0.01)


def make_worker(worker_id: str, slowdown: float = 1.0) -> Worker:
    memory = MemoryModel.in_rows(PLAN)
    worker = Worker(worker_id=worker_id, memory=memory, capacity=100, least=2, limits=[2], weights=(1.0,))
    worker.slowdown = slowdown
    return worker


def decided(*, slowdown: float, waiting: int, running: int, thieves: int = 1) -> list[Decision]:
    """Return what is decided at the end of a run where one worker has prompts and others have nothing."""
    residency = Residency(
        plan=PLAN, run_seed=0, settings=CoordinatorSettings(spread="auto"), workload=workload()
    )
    for worker in [make_worker("early", slowdown), *(make_worker(f"late-{i}") for i in range(thieves))]:
        residency.workers.add(worker)
    prompts = make_prompts(running + waiting)
    for prompt in prompts:
        residency.enqueue(prompt)
        here = Assignment(worker_of={0: "early", 1: "early"}, moved=0, reason="")
        residency.apply(Start(prompt_key=prompt.key, assignment=here))
    for prompt in prompts[:running]:
        residency.apply(
            Send(worker_id="early", segment_index=0, slots={prompt.key: (0, 1)}, runs_alone=False)
        )
    residency.is_exhausted = True
    decisions = []
    for decision in rebalance(residency, Deadlines(residency.settings, workload())):
        decisions.append(decision)
        residency.apply(decision)
    return decisions


def test_an_idle_worker_steals_the_shard_that_would_run_last() -> None:
    [steal] = decided(slowdown=1.0, waiting=3, running=1)
    assert isinstance(steal, Steal)
    assert (steal.prompt_key, steal.victim) == (make_prompts(4)[3].key, "early")
    assert steal.assignment.worker_of == {0: "late-0", 1: "late-0"}
    assert steal.assignment.reason == "2 taken over by an idle worker; 2 s expected, 8 s there"


def test_a_worker_that_would_be_later_steals_nothing() -> None:
    assert decided(slowdown=0.5, waiting=1, running=1) == [], "2 s there against 0.5 times 4 where it waits"
    assert len(decided(slowdown=0.51, waiting=1, running=1)) == 1


def test_every_idle_worker_steals_while_something_waits() -> None:
    steals = decided(slowdown=1.0, waiting=2, running=1, thieves=3)
    thieves = [set(s.assignment.worker_of.values()) for s in steals if isinstance(s, Steal)]
    assert thieves == [{"late-0"}, {"late-1"}]


def test_what_a_slow_worker_runs_is_executed_again_elsewhere() -> None:
    [restart] = decided(slowdown=4.1, waiting=0, running=1)
    assert restart == Restart(
        prompt_key=make_prompts(1)[0].key,
        away_from="early",
        reason="begun anew: early takes 4.1 times the usual",
        is_speculative=True,
    )
    assert decided(slowdown=1.9, waiting=0, running=1) == [], "not slow enough"


def test_no_more_is_executed_again_than_there_are_idle_workers() -> None:
    keys = [prompt.key for prompt in make_prompts(3)]
    restarts = decided(slowdown=9.0, waiting=0, running=3, thieves=2)
    found = [restart.prompt_key for restart in restarts if isinstance(restart, Restart)]
    assert found == [keys[2], keys[1]], "what it gets to last comes first"


def until_nothing_is_at_its_beginning(cluster: DummyCluster, worker_id: str) -> None:
    """Run a worker until all that it has is after a selection."""
    worker = cluster.coordinator.view.workers[worker_id]
    while 0 in [
        *(batch.segment_index for batch in worker.batches.values()),
        *(segment for segment, _ in worker.backlog.rows_by_segment()),
    ]:
        cluster.work(worker_id)
        while cluster.mail:
            cluster.deliver(0)


def moves(cluster: DummyCluster, said: str) -> list[SelectionRecord]:
    """Finish, and return what the traces say of moves of one kind."""
    cluster.settle()
    cluster.check_finished()
    results = [outcome for outcome in cluster.outcomes.values() if isinstance(outcome, PromptResult)]
    assert len(results) == len(cluster.outcomes)
    return [record for result in results for record in result.trace if said in record.reason]


def test_the_trace_says_what_was_stolen_and_why() -> None:
    cluster = cluster_with_a_late_worker(workload=workload(plan=SEARCH), prompts=7, plan=SEARCH, rows=8)
    until_nothing_is_at_its_beginning(cluster, "early")
    cluster.join("late", rows=2)
    stolen = moves(cluster, "taken over by an idle worker")
    assert stolen
    assert all(record.moved > 0 and "late" in record.placement for record in stolen)


def test_the_trace_says_what_was_executed_again_and_why() -> None:
    cluster = DummyCluster(
        plan=SEARCH,
        run_seed=0,
        settings=CoordinatorSettings(batches_in_flight=1),
        prompts=make_prompts(30),
        workload=workload(plan=SEARCH),
    )
    for name in ("usual", "slow"):
        cluster.join(name, rows=4)
    cluster.lease_requests.clear()
    cluster.hand_over()
    cluster.workers["slow"].slowdown = 30.0
    view = cluster.coordinator.view
    while view.waiting or 0 in [batch.segment_index for batch in view.workers["slow"].batches.values()]:
        for name in ("usual", "slow"):
            cluster.work(name)
        while cluster.mail:
            cluster.deliver(0)
    assert view.workers["slow"].slowdown > 4.0
    while "usual" in {name for name, worker in cluster.workers.items() if worker.queue}:
        cluster.work("usual")
        while cluster.mail:
            cluster.deliver(0)
    again = moves(cluster, "begun anew: slow takes")
    assert again
    assert all(outcome.attempts <= 2 for outcome in cluster.outcomes.values())


def simulated(*, stragglers: float, factor: float, gpus: int = 8, prompts: int = 160) -> SimulationResult:
    plan = compile_plan(
        scale_schedule=tuple((k, k) for k in (1, 1, 2, 2, 3, 3, 4, 4, 6, 6, 8, 8, 12)),
        strategy="tts-var",
        n=1,
    )
    loads = [
        SegmentLoad(tokens=9, batch_seconds=0.02, row_seconds=seconds, replay_seconds=seconds / 20)
        for seconds in (0.01, 0.02, 0.03, 0.08, 0.25)
    ]
    return simulate(
        plan=plan,
        workload=Workload(segments=tuple(loads), source="a test"),
        settings=SimulationSettings(
            gpus=gpus,
            prompts=prompts,
            rows=16,
            noise=0.05,
            stragglers=stragglers,
            straggler_factor=factor,
            start_seconds=0,
            start_spread_seconds=0,
        ),
        coordinator=CoordinatorSettings(),
    )


def test_one_slow_worker_does_not_hold_up_the_end() -> None:
    even = simulated(stragglers=0.0, factor=1.0)
    slow = simulated(stragglers=0.125, factor=10.0)
    # Seven workers and a tenth: 8 / 7.1 is what slowness costs by itself.
    assert slow.makespan_seconds < 1.2 * even.makespan_seconds * 8 / 7.1
