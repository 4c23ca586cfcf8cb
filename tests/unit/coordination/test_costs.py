"""Costs: survivors move where an imbalance costs more than replaying them."""

from __future__ import annotations

import pytest

from tests.support.dummy_cluster import DummyCluster
from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.messages import RunBatch
from ttsvar_ray.coordination.placement import Assignment, CostModel
from ttsvar_ray.coordination.settings import CoordinatorSettings, SegmentLoad, Spread, Workload
from ttsvar_ray.coordination.workers import MemoryModel, Worker
from ttsvar_ray.results import PromptResult, SelectionRecord
from ttsvar_ray.search.strategy import compile_plan

PLAN = compile_plan(
    scale_schedule=((1, 1), (2, 2), (3, 3), (4, 4)),
    strategy="tts-var",
    batch_schedule=[8, 6, 4, 4],
    cluster_scales=[1],
    resample_scales=[2],
    cluster_restarts=1,
)


def make_workload(replay_seconds: float, pass_rows: int = 0) -> Workload:
    loads = [
        SegmentLoad(
            tokens=1,
            batch_seconds=0.5,
            row_seconds=1.0,
            replay_seconds=replay_seconds if segment.index else 0.0,
            pass_rows=pass_rows,
        )
        for segment in PLAN.segments
    ]
    return Workload(segments=tuple(loads), source="a test")


def assignment(*workers: str, moved: int) -> Assignment:
    return Assignment(worker_of=dict(enumerate(workers)), moved=moved, reason="as told")


def worker(worker_id: str, *, waits: int = 0, slowdown: float = 1.0) -> Worker:
    """Return a worker with so many seconds of work before it."""
    memory = MemoryModel.in_rows(PLAN)
    weights = (1.0,) * len(PLAN.segments)
    made = Worker(worker_id=worker_id, memory=memory, capacity=9, least=9, limits=[9] * 3, weights=weights)
    made.slowdown = slowdown
    if waits:
        made.backlog.push("other", 0, range(waits), alone=False)
    return made


STAY = assignment("a", "a", "a", "a", moved=0)
SHARE = assignment("a", "a", "b", "b", moved=2)
PARENTS = {0: 0, 1: 0, 2: 1, 3: 1}
HELD = {"a": frozenset({0, 1}), "b": frozenset[int]()}
LAST = len(PLAN.segments) - 1


def cost_of(
    assignment: Assignment,
    *,
    replay_seconds: float = 3.0,
    segment_index: int = LAST,
    to_the_end: bool = True,
    pass_rows: int = 0,
    **workers: Worker,
) -> float:
    return CostModel(PLAN, make_workload(replay_seconds, pass_rows=pass_rows)).cost_of(
        assignment.worker_of,
        segment_index=segment_index,
        parent_of=PARENTS,
        held=HELD,
        workers={"a": worker("a"), "b": worker("b"), **workers},
        to_the_end=to_the_end,
    )


def test_a_cost_is_that_of_all_remaining_segments_as_populations_shrink() -> None:
    assert [segment.population for segment in PLAN.segments] == [8, 6, 4]
    assert cost_of(STAY) == pytest.approx(0.5 + 4)
    assert cost_of(SHARE) == pytest.approx(0.5 + 2 + 3), "one distinct parent for two siblings"
    shrinks = PLAN.segments[LAST].population / PLAN.segments[LAST - 1].population
    assert cost_of(STAY, segment_index=LAST - 1) == pytest.approx(1.0 + 4 + 4 * shrinks)
    assert cost_of(SHARE, b=worker("b", waits=60)) == pytest.approx(60 + 0.5 + 2 + 3)
    assert cost_of(SHARE, b=worker("b", slowdown=4.0)) == pytest.approx(4 * (0.5 + 2 + 3))


def test_the_cost_of_one_segment_is_that_of_its_passes() -> None:
    assert cost_of(STAY, segment_index=LAST - 1, to_the_end=False) == pytest.approx(0.5 + 4)
    filled = cost_of(SHARE, segment_index=LAST - 1, to_the_end=False, pass_rows=8)
    assert filled == pytest.approx(0.5 + 8 + 3), "every pass has eight rows"


def cheapest(replay_seconds: float, assignments: list[Assignment]) -> Assignment:
    return CostModel(PLAN, make_workload(replay_seconds)).cheapest(
        assignments,
        segment_index=LAST,
        parent_of=PARENTS,
        held=HELD,
        workers={"a": worker("a"), "b": worker("b")},
    )


@pytest.mark.parametrize(("replay_seconds", "moved"), [(0.1, 2), (1.9, 2), (2.1, 0), (50.0, 0)])
def test_survivors_move_exactly_where_that_is_over_sooner(replay_seconds: float, moved: int) -> None:
    chosen = cheapest(replay_seconds, [STAY, SHARE])
    assert chosen.moved == moved
    stay, share = "4.5 s", f"{2.5 + replay_seconds:.3g} s"
    expected = (share, f"{stay} if 0 moved") if moved else (stay, f"{share} if 2 moved")
    assert chosen.reason == f"as told; {expected[0]} expected, {expected[1]}"


def test_what_takes_the_same_time_stays() -> None:
    for order in ([STAY, SHARE], [SHARE, STAY]):
        assert cheapest(2.0, order).moved == 0


def run(workload: Workload | None, *, spread: Spread, workers: int = 2, prompts: int = 1) -> DummyCluster:
    cluster = DummyCluster(
        plan=PLAN,
        run_seed=0,
        settings=CoordinatorSettings(spread=spread),
        prompts=make_prompts(prompts),
        workload=workload,
    )
    cluster.join("w0", rows=8)
    while cluster.lease_requests:
        cluster.lease(most=prompts)
    for index in range(1, workers):
        cluster.join(f"w{index}", rows=8)
    cluster.settle()
    cluster.check_finished()
    return cluster


def records(cluster: DummyCluster) -> list[SelectionRecord]:
    results = [outcome for outcome in cluster.outcomes.values() if isinstance(outcome, PromptResult)]
    return [record for result in results for record in result.trace]


@pytest.mark.parametrize("spread", [2, "auto"])
def test_a_started_prompt_widens_where_replay_is_cheap_and_stays_where_it_is_dear(spread: Spread) -> None:
    cheap = records(run(make_workload(0.01), spread=spread))[0]
    assert cheap.moved > 0
    assert set(cheap.placement) == {"w0", "w1"}
    assert "s expected" in cheap.reason

    dear = records(run(make_workload(1_000.0), spread=spread))
    assert [record.moved for record in dear] == [0] * len(dear)
    assert set(dear[0].placement) == {"w0"}
    assert dear[0].reason.startswith("all stay with their parents; ")
    assert " moved" in dear[0].reason

    ruled = records(run(None, spread=spread))[0]
    assert ruled.moved > 0
    assert "expected" not in ruled.reason


def test_a_deep_queue_moves_nothing() -> None:
    cluster = run(make_workload(0.001), spread="auto", prompts=24)
    early = [record for record in records(cluster) if record.prompt_key < "p0012"]
    assert all(record.moved == 0 for record in early)


def test_each_distinct_parent_is_rebuilt_once_where_it_moves_to() -> None:
    cluster = run(make_workload(0.01), spread=2)
    tasks = [t for a in cluster.actions if isinstance(a, RunBatch) for t in a.tasks if t.parent_bits]
    assert tasks
    assert sum(w.engine.replayed for w in cluster.workers.values()) == sum(len(t.parent_bits) for t in tasks)
    for task in tasks:
        assert set(task.parent_bits) <= set(task.parent_slots)
