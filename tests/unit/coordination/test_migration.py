"""Migration: moving survivors where an imbalance costs more than replaying them."""

from __future__ import annotations

import pytest

from tests.support.dummy_cluster import DummyCluster
from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.messages import RunBatch
from ttsvar_ray.coordination.migration import Migration
from ttsvar_ray.coordination.placement import Candidate, Seating
from ttsvar_ray.coordination.settings import CoordinatorSettings, Spread
from ttsvar_ray.coordination.workload import SegmentLoad, Workload
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


def make_workload(replay_seconds: float, row_seconds: float = 1.0) -> Workload:
    loads = [
        SegmentLoad(
            tokens=1,
            batch_seconds=0.5,
            row_seconds=row_seconds,
            replay_seconds=replay_seconds if segment.index else 0.0,
        )
        for segment in PLAN.segments
    ]
    return Workload(segments=tuple(loads), source="a test")


def seating(*workers: str, moved: int) -> Seating:
    return Seating(worker_of=dict(enumerate(workers)), moved=moved, reason="as told")


def candidates(**parents: set[int]) -> list[Candidate]:
    return [Candidate(worker_id=name, room=9, parents=frozenset(held)) for name, held in parents.items()]


STAY = seating("a", "a", "a", "a", moved=0)
SHARE = seating("a", "a", "b", "b", moved=2)
PARENTS = {0: 0, 1: 0, 2: 1, 3: 1}
EVEN = {"a": 1.0, "b": 1.0}


def test_seconds_are_those_of_all_remaining_segments_as_populations_shrink() -> None:
    assert [segment.population for segment in PLAN.segments] == [8, 6, 4]
    migration = Migration(PLAN, make_workload(3.0))
    last = len(PLAN.segments) - 1
    known = {"a": frozenset({0, 1}), "b": frozenset[int]()}
    idle = {"a": 0.0, "b": 0.0}
    stay = migration.seconds(last, STAY, parent_of=PARENTS, parents_on=known, wait=idle, pace=EVEN)
    assert stay == pytest.approx(0.5 + 4)
    share = migration.seconds(last, SHARE, parent_of=PARENTS, parents_on=known, wait=idle, pace=EVEN)
    assert share == pytest.approx(0.5 + 2 + 3), "one distinct parent for two siblings"
    earlier = migration.seconds(last - 1, STAY, parent_of=PARENTS, parents_on=known, wait=idle, pace=EVEN)
    shrinks = PLAN.segments[last].population / PLAN.segments[last - 1].population
    assert earlier == pytest.approx(1.0 + 4 + 4 * shrinks)
    busy = migration.seconds(
        last, SHARE, parent_of=PARENTS, parents_on=known, wait={"a": 0.0, "b": 60.0}, pace=EVEN
    )
    assert busy == pytest.approx(60 + 0.5 + 2 + 3)
    slow = migration.seconds(
        last, SHARE, parent_of=PARENTS, parents_on=known, wait=idle, pace={"a": 1.0, "b": 4.0}
    )
    assert slow == pytest.approx(4 * (0.5 + 2 + 3))


@pytest.mark.parametrize(("replay_seconds", "moved"), [(0.1, 2), (1.9, 2), (2.1, 0), (50.0, 0)])
def test_survivors_move_exactly_where_that_is_over_sooner(replay_seconds: float, moved: int) -> None:
    chosen = Migration(PLAN, make_workload(replay_seconds)).choose(
        len(PLAN.segments) - 1,
        [STAY, SHARE],
        parent_of=PARENTS,
        candidates=candidates(a={0, 1}, b=set()),
        wait={"a": 0.0, "b": 0.0},
        pace=EVEN,
    )
    assert chosen.moved == moved
    stay, share = "4.5 s", f"{2.5 + replay_seconds:.3g} s"
    expected = (share, f"{stay} if 0 moved") if moved else (stay, f"{share} if 2 moved")
    assert chosen.reason == f"as told; {expected[0]} expected, {expected[1]}"


def test_what_takes_the_same_time_stays() -> None:
    migration = Migration(PLAN, make_workload(2.0))
    idle = {"a": 0.0, "b": 0.0}
    for order in ([STAY, SHARE], [SHARE, STAY]):
        chosen = migration.choose(
            len(PLAN.segments) - 1,
            order,
            parent_of=PARENTS,
            candidates=candidates(a={0, 1}, b=set()),
            wait=idle,
            pace=EVEN,
        )
        assert chosen.moved == 0


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
