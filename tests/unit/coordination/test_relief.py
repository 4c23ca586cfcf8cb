"""The end of a run: idle workers take what waits behind others, and slow workers are known as slow."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.dummy_cluster import DummyCluster
from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.messages import RunBatch
from ttsvar_ray.coordination.settings import CoordinatorSettings, Spread
from ttsvar_ray.coordination.workload import SegmentLoad, Workload
from ttsvar_ray.results import PromptResult
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.strategy import compile_plan
from ttsvar_ray.simulation import SimulationResult, SimulationSettings, simulate

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
    """Return a cluster whose first worker was given all prompts before the second came."""
    cluster = DummyCluster(
        plan=plan,
        run_seed=0,
        settings=CoordinatorSettings(spread=spread, batches_in_flight=1, live_rows=100),
        prompts=make_prompts(prompts),
        workload=workload,
    )
    cluster.join("early", rows=rows)
    cluster.lease_requests.clear()
    cluster.hand_over()
    # Everything has begun and waits there, but for one batch.
    early = cluster.coordinator._state.fleet.get("early")
    assert early is not None
    cluster.coordinator._admission.admit(early, 100)
    assert not cluster.coordinator._state.waiting
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


def test_a_pace_is_learnt_bit_by_bit_and_weighs_what_is_left() -> None:
    cluster = cluster_with_a_late_worker(workload=workload(), prompts=3)
    early = cluster.coordinator._state.fleet.get("early")
    assert early is not None
    assert (early.pace, early.load) == (1.0, 6.0)
    early.learn_pace(10.0)
    assert 1.9 < early.pace < 2.0, "one answer makes no slow worker"
    assert early.load == pytest.approx(early.pace * 6.0)
    for _ in range(9):
        early.learn_pace(10.0)
    assert early.pace > 9.0
    for _ in range(20):
        early.learn_pace(1.0)
    assert early.pace == pytest.approx(1.0, abs=0.01)


def test_a_worker_that_would_be_later_takes_nothing_over() -> None:
    cluster = cluster_with_a_late_worker(workload=workload(), prompts=2)
    early = cluster.coordinator._state.fleet.get("early")
    assert early is not None
    early.pace = 0.4
    cluster.join("late", rows=2)
    # 2 seconds there against 0.4 times 4 where it waits.
    assert finish(cluster) == {"early": 4}


def test_what_a_slow_worker_runs_begins_anew_elsewhere() -> None:
    cluster = cluster_with_a_late_worker(workload=workload(), prompts=1)
    early = cluster.coordinator._state.fleet.get("early")
    assert early is not None and early.batches and not early.backlog
    # 8 seconds for what takes 2.
    early.pace = 4.0
    cluster.join("late", rows=2)
    late = cluster.coordinator._state.fleet.get("late")
    assert late is not None and late.batches
    ran = finish(cluster)
    assert ran["late"] == 2
    (outcome,) = cluster.outcomes.values()
    assert isinstance(outcome, PromptResult)
    assert outcome.attempts == 2


@pytest.mark.parametrize(
    ("pace", "said"), [(1.0, "taken over by an idle worker"), (9.0, "begun anew: early takes 9 times")]
)
def test_the_trace_says_who_was_relieved_and_why(pace: float, said: str) -> None:
    cluster = cluster_with_a_late_worker(workload=workload(plan=SEARCH), prompts=6, plan=SEARCH, rows=8)
    early = cluster.coordinator._state.fleet.get("early")
    assert early is not None

    # Until nothing is left that has no selection behind it.
    def at_the_beginning() -> bool:
        running = [batch.segment_index for batch in early.batches.values()]
        return 0 in [*running, *(segment for segment, _ in early.backlog.rows_by_segment())]

    while at_the_beginning():
        cluster.work("early")
        while cluster.mail:
            cluster.deliver(0)
    early.pace = pace
    cluster.join("late", rows=2)
    cluster.settle()
    cluster.check_finished()
    results = [outcome for outcome in cluster.outcomes.values() if isinstance(outcome, PromptResult)]
    assert len(results) == 6
    relieved = [record for result in results for record in result.trace if said in record.reason]
    assert relieved
    if pace == 1.0:
        assert all(record.moved > 0 and "late" in record.placement for record in relieved)


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
