"""Deadlines: when an answer is overdue, and what is learnt from those that came."""

from __future__ import annotations

import pytest

from tests.support.dummy_cluster import DummyCluster
from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.deadlines import Deadlines
from ttsvar_ray.coordination.messages import Abandon, RunBatch, ShardTask
from ttsvar_ray.coordination.settings import CoordinatorSettings, SegmentLoad, Workload
from ttsvar_ray.coordination.workers import Batch, MemoryModel, Worker, Workers
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.results import PromptFailure
from ttsvar_ray.search.strategy import compile_plan

PLAN = compile_plan(scale_schedule=((1, 1), (2, 2)), strategy="best-of-n", n=4)
SETTINGS = CoordinatorSettings(
    deadline_factor=5.0, deadline_floor_seconds=10.0, deadline_ceiling_seconds=600.0
)
WORKLOAD = Workload(
    source="a test",
    segments=(SegmentLoad(tokens=5, batch_seconds=1.0, row_seconds=1.0, replay_seconds=2.0),),
)


def make_worker(worker_id: str = "w0") -> Worker:
    memory = MemoryModel.in_rows(PLAN)
    return Worker(worker_id=worker_id, memory=memory, capacity=32, least=4, limits=[8], weights=(1.0,))


def make_batch(batch_id: int, *, rows: int = 4, replayed: int = 0) -> Batch:
    task = ShardTask(
        prompt=make_prompts(1)[0],
        attempt=1,
        segment_index=0,
        slots=tuple(range(rows)),
        parent_bits=dict.fromkeys(range(replayed), ()),
    )
    return Batch(batch_id=batch_id, segment_index=0, tasks=(task,), num_rows=rows)


def warm_up(deadlines: Deadlines, worker: Worker, *seconds: float) -> None:
    """Answer one batch that teaches nothing, then one per entry of `seconds`."""
    deadlines.answered(worker, make_batch(0), 500.0)
    for value in seconds:
        deadlines.answered(worker, make_batch(0), value)


def test_until_something_is_known_only_the_ceiling_holds() -> None:
    deadlines, worker = Deadlines(SETTINGS, WORKLOAD), make_worker()
    assert deadlines.limit(worker, make_batch(1)) == 600.0
    deadlines.answered(worker, make_batch(0), 500.0)
    assert deadlines.limit(worker, make_batch(1)) == 600.0, "the first answer waited for compilation"
    deadlines.answered(worker, make_batch(0), 5.0)
    assert deadlines.limit(worker, make_batch(1)) == 25.0


def test_a_worker_that_has_not_warmed_up_has_more_time_than_its_peers() -> None:
    deadlines, veteran, novice = Deadlines(SETTINGS, WORKLOAD), make_worker(), make_worker("w1")
    warm_up(deadlines, veteran, 5.0)
    assert deadlines.limit(novice, make_batch(1)) == 600.0
    deadlines.answered(novice, make_batch(0), 300.0)
    assert deadlines.limit(novice, make_batch(1)) == 25.0
    deadlines.forget("w1")
    assert deadlines.limit(novice, make_batch(1)) == 600.0


def test_expectations_follow_the_size_of_a_batch_and_the_slowest_of_late() -> None:
    deadlines, worker = Deadlines(SETTINGS, WORKLOAD), make_worker()
    warm_up(deadlines, worker, 5.0)
    assert deadlines.expected(worker, make_batch(1, rows=8, replayed=3)) == pytest.approx(1 + 8 + 6)
    deadlines.answered(worker, make_batch(0), 20.0)
    assert deadlines.expected(worker, make_batch(1)) == pytest.approx(20.0)
    for _ in range(60):
        deadlines.answered(worker, make_batch(0), 5.0)
    assert deadlines.expected(worker, make_batch(1)) == pytest.approx(5.0, rel=0.1), "forgotten by and by"


def test_without_a_workload_the_slowest_answer_counts() -> None:
    deadlines, worker = Deadlines(SETTINGS, None), make_worker()
    warm_up(deadlines, worker, 3.0, 8.0, 4.0)
    assert deadlines.limit(worker, make_batch(1, rows=1)) == pytest.approx(5 * 8.0 * 0.95)


def test_the_limit_stays_between_floor_and_ceiling() -> None:
    deadlines, worker = Deadlines(SETTINGS, WORKLOAD), make_worker()
    warm_up(deadlines, worker, 0.001)
    assert deadlines.limit(worker, make_batch(1)) == 10.0
    warm_up(deadlines, worker, 10_000.0)
    assert deadlines.limit(worker, make_batch(1)) == 600.0


def test_a_clock_starts_when_a_batch_becomes_the_oldest() -> None:
    deadlines, worker, workers = Deadlines(SETTINGS, WORKLOAD), make_worker(), Workers()
    workers.add(worker)
    warm_up(deadlines, worker, 5.0)
    worker.batches = {1: make_batch(1), 2: make_batch(2)}
    assert deadlines.tick(100.0, workers) == []
    assert deadlines.tick(124.0, workers) == []
    deadlines.answered(worker, worker.batches.pop(1), 5.0)
    assert deadlines.tick(126.0, workers) == []
    assert deadlines.tick(140.0, workers) == [], "14 s, although it was sent 40 s ago"
    worker.batches.clear()
    assert deadlines.tick(1000.0, workers) == []


def test_what_the_clock_saw_counts_where_a_report_says_less() -> None:
    deadlines, worker, workers = Deadlines(SETTINGS, WORKLOAD), make_worker(), Workers()
    workers.add(worker)
    warm_up(deadlines, worker, 5.0)
    worker.batches = {1: make_batch(1)}
    deadlines.tick(0.0, workers)
    deadlines.tick(15.0, workers)
    deadlines.answered(worker, worker.batches.pop(1), 5.0)
    assert deadlines.expected(worker, make_batch(2)) == pytest.approx(15.0)


def make_cluster(prompts: int, workers: int, *, max_attempts: int = 3) -> DummyCluster:
    cluster = DummyCluster(
        plan=PLAN,
        run_seed=0,
        settings=CoordinatorSettings(
            deadline_floor_seconds=10.0, deadline_ceiling_seconds=60.0, max_attempts=max_attempts, spread=1
        ),
        prompts=make_prompts(prompts),
    )
    for index in range(workers):
        cluster.join(f"w{index}", rows=8)
    while cluster.lease_requests:
        cluster.lease(most=100)
    return cluster


def test_a_hung_worker_is_abandoned_once_with_a_reason_and_its_work_goes_on_elsewhere() -> None:
    cluster = make_cluster(6, 2)
    cluster.workers["w0"].is_hung = True
    before = sum(isinstance(action, RunBatch) for action in cluster.actions)
    for _ in range(30):
        cluster.tick(7.0)
        while cluster.workers["w1"].queue or cluster.mail:
            cluster.work("w1") if cluster.workers["w1"].queue else cluster.deliver(0)
    [abandon] = [action for action in cluster.actions if isinstance(action, Abandon)]
    assert abandon.worker_id == "w0"
    assert "no answer after 63 s" in abandon.reason
    assert "p0000#0" in abandon.reason
    assert "at most 60 s allowed" in abandon.reason
    late = [action for action in cluster.actions if isinstance(action, RunBatch)][before:]
    assert {batch.worker_id for batch in late} <= {"w1"}

    cluster.lose("w0")
    cluster.settle()
    cluster.check_finished()


def test_an_answer_that_comes_after_all_still_counts() -> None:
    cluster = make_cluster(1, 1)
    cluster.tick(1.0)
    cluster.tick(100.0)
    assert cluster.workers["w0"].is_abandoned
    cluster.work("w0")
    cluster.deliver(0)
    [outcome] = cluster.outcomes.values()
    assert not isinstance(outcome, PromptFailure)
    assert outcome.attempts == 1
    cluster.lose("w0")
    assert cluster.coordinator.is_done


def test_a_prompt_that_hangs_every_worker_is_given_up() -> None:
    cluster = make_cluster(3, 2)

    def is_hanging(item: object) -> bool:
        return isinstance(item, RunBatch) and any(task.prompt.row == 1 for task in item.tasks)

    for step in range(400):
        if cluster.lease_requests:
            cluster.lease(most=100)
            continue
        free = [n for n, w in cluster.workers.items() if w.queue and not is_hanging(w.queue[0])]
        if free:
            cluster.work(free[0])
        elif cluster.mail:
            cluster.deliver(0)
        elif cluster.coordinator.is_done:
            break
        else:
            cluster.tick(30.0)
        for name in [n for n, w in cluster.workers.items() if w.is_abandoned]:
            cluster.lose(name)
            cluster.join(f"r{step}", rows=8)
    assert cluster.coordinator.is_done
    failures = [outcome for outcome in cluster.outcomes.values() if isinstance(outcome, PromptFailure)]
    assert [failure.prompt.row for failure in failures] == [1]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"deadline_factor": 0.5}, "deadline_factor"),
        ({"deadline_floor_seconds": 5.0, "deadline_ceiling_seconds": 1.0}, "deadline_floor_seconds"),
        ({"deadline_floor_seconds": 0.0, "deadline_ceiling_seconds": 0.0}, "deadline_ceiling_seconds"),
        ({"batch_tokens": 0}, "batch_tokens"),
    ],
)
def test_impossible_limits_are_refused_by_name(values: dict[str, float], name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        CoordinatorSettings(**values)  # type: ignore[arg-type]
