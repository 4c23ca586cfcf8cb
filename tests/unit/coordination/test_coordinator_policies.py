"""What the coordinator decides when nothing goes wrong: leases, batches, spread, placement, release."""

from __future__ import annotations

import pytest

from tests.support.dummy_cluster import FOUR_SCALES, DummyCluster, make_cluster
from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.coordinator import Coordinator
from ttsvar_ray.coordination.messages import (
    Emit,
    LeasePrompts,
    PromptsLeased,
    Release,
    RunBatch,
    WorkerJoined,
)
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.results import PromptResult


def batches(cluster: DummyCluster, worker_id: str | None = None) -> list[RunBatch]:
    return [
        action
        for action in cluster.actions
        if isinstance(action, RunBatch) and worker_id in (None, action.worker_id)
    ]


def test_nothing_is_leased_without_workers() -> None:
    coordinator = Coordinator(plan=FOUR_SCALES, run_seed=0, settings=CoordinatorSettings())
    assert not coordinator.is_done
    [lease] = coordinator.handle(WorkerJoined(worker_id="w0", rows=8))
    assert lease == LeasePrompts(count=2)


def test_an_empty_prompt_set_is_done_at_once() -> None:
    cluster = make_cluster(prompts=0, workers=[8])
    cluster.settle()
    cluster.check_finished()
    assert cluster.outcomes == {}


def test_leases_are_bounded_and_follow_the_workers() -> None:
    cluster = make_cluster(prompts=40, workers=[16, 16], live_rows=16)
    cluster.lease(most=1000)
    for _ in range(60):
        assert len(cluster.coordinator.view.waiting) <= 8
        assert len(cluster.coordinator.view.live) <= 16, "two workers, 16 rows each, at least 2 a prompt"
        if cluster.lease_requests:
            cluster.lease(most=1000)
        elif cluster.mail:
            cluster.deliver(0)
        else:
            cluster.work(next(name for name, worker in cluster.workers.items() if worker.queue))
    cluster.settle()
    cluster.check_finished()


@pytest.mark.parametrize("prompts", [(), tuple(make_prompts(1)) * 2])
def test_leases_that_break_the_protocol_are_refused(prompts: tuple[object, ...]) -> None:
    coordinator = Coordinator(plan=FOUR_SCALES, run_seed=0, settings=CoordinatorSettings())
    with pytest.raises(ValueError, match="PromptsLeased"):
        coordinator.handle(PromptsLeased(prompts=prompts, is_last=False))  # type: ignore[arg-type]


def test_every_worker_has_one_batch_before_any_has_two() -> None:
    cluster = make_cluster(prompts=8, workers=[16, 16])
    [asked] = cluster.lease_requests
    cluster.lease_requests[0] = 8
    cluster.lease(most=8)
    assert asked < 8, "the first worker asked before there was a second"
    assert [batch.worker_id for batch in batches(cluster)] == ["w0", "w1", "w0", "w1"]


def test_batches_are_formed_across_prompts() -> None:
    cluster = make_cluster(prompts=8, workers=[32])
    cluster.lease(most=8)
    sizes = [[len(task.slots) for task in batch.tasks] for batch in batches(cluster)]
    assert sizes == [[8, 8, 8, 8], [8, 8, 8, 8]]


def test_what_is_far_along_is_finished_before_something_new_is_started() -> None:
    cluster = make_cluster(prompts=20, workers=[8], batches_in_flight=1)
    cluster.settle()
    segments = [batch.tasks[0].segment_index for batch in batches(cluster)]
    assert segments == [0, 1, 2] * 20


def test_the_last_prompts_are_shared_out() -> None:
    cluster = make_cluster(prompts=4, workers=[40, 40, 40, 40])
    while cluster.lease_requests:
        cluster.lease(most=4)
    assert {batch.worker_id for batch in batches(cluster)} == {"w0", "w1", "w2", "w3"}


def test_spread_one_moves_nothing() -> None:
    cluster = make_cluster(prompts=12, workers=[8, 16, 3])
    cluster.settle()
    cluster.check_finished()
    assert all(not task.parent_bits for batch in batches(cluster) for task in batch.tasks)
    for outcome in cluster.outcomes.values():
        assert isinstance(outcome, PromptResult)
        assert [record.moved for record in outcome.trace] == [0, 0]
        assert len({worker for record in outcome.trace for worker in record.placement}) == 1


@pytest.mark.parametrize("spread", [2, 4])
def test_a_fixed_spread_shards_evenly_and_replays_only_the_surplus(spread: int) -> None:
    cluster = make_cluster(prompts=5, workers=[8] * 4, spread=spread)
    cluster.settle()
    cluster.check_finished()
    first = [task for batch in batches(cluster) for task in batch.tasks if task.segment_index == 0]
    assert {len(task.slots) for task in first} == {8 // spread}
    moved = 0
    for outcome in cluster.outcomes.values():
        assert isinstance(outcome, PromptResult)
        for record in outcome.trace:
            survivors = len(record.ancestor_index)
            assert len(record.placement) == survivors
            most = max(record.placement.count(worker) for worker in record.placement)
            assert most == -(-survivors // min(spread, survivors))
            assert (record.moved > 0) == ("replayed" in record.reason)
            moved += record.moved
    replays = sum(worker.engine.replayed for worker in cluster.workers.values())
    assert 0 < replays <= moved, "a parent that moves with two children is replayed once"


def test_auto_is_narrow_while_prompts_are_many_and_wide_for_one() -> None:
    many = make_cluster(prompts=12, workers=[8] * 4, spread="auto")
    while many.lease_requests:
        many.lease(most=1)
        assert len(many.coordinator.view.live) < 12
    assert {len(task.slots) for batch in batches(many) for task in batch.tasks} == {8}

    one = make_cluster(prompts=1, workers=[8] * 4, spread="auto")
    one.settle()
    one.check_finished()
    first = [batch for batch in batches(one) if batch.tasks[0].segment_index == 0]
    assert sorted(batch.worker_id for batch in first) == ["w0", "w1", "w2", "w3"]
    assert {len(task.slots) for batch in first for task in batch.tasks} == {2}


def test_auto_widens_a_started_prompt_over_workers_that_would_idle() -> None:
    cluster = make_cluster(prompts=1, workers=[8], spread="auto")
    cluster.lease(most=1)
    cluster.join("late", rows=8)
    cluster.settle()
    [outcome] = cluster.outcomes.values()
    assert isinstance(outcome, PromptResult)
    assert set(outcome.trace[0].placement) == {"w0", "late"}
    assert outcome.trace[0].moved == 3


def test_a_population_larger_than_a_batch_keeps_its_parents_for_every_shard() -> None:
    cluster = make_cluster(prompts=3, workers=[3])
    cluster.settle()
    cluster.check_finished()
    assert cluster.workers["w0"].engine.replayed == 0


def test_release_follows_the_last_trajectory_of_a_prompt_on_a_worker() -> None:
    cluster = make_cluster(prompts=1, workers=[8] * 4, spread=4)
    cluster.settle()
    emitted = next(i for i, action in enumerate(cluster.actions) if isinstance(action, Emit))
    releases = [action for action in cluster.actions[:emitted] if isinstance(action, Release)]
    assert sorted(release.worker_id for release in releases) == ["w0", "w1", "w2", "w3"]
    [outcome] = cluster.outcomes.values()
    assert isinstance(outcome, PromptResult)
    survivors_on = set(outcome.trace[1].placement)
    early = cluster.actions.index(next(b for b in batches(cluster) if b.tasks[0].segment_index == 2))
    released_early = {a.worker_id for a in cluster.actions[:early] if isinstance(a, Release)}
    assert len(survivors_on) == 2
    assert released_early == set(cluster.workers) - survivors_on


def test_live_rows_bound_what_is_started() -> None:
    narrow = make_cluster(prompts=20, workers=[8], live_rows=8, batches_in_flight=2)
    narrow.lease(most=20)
    assert len(narrow.coordinator.view.live) == 1
    narrow.settle()
    narrow.check_finished()

    wide = make_cluster(prompts=20, workers=[8], live_rows=16, batches_in_flight=2)
    wide.lease(most=20)
    assert len(wide.coordinator.view.live) == 2


def test_results_come_with_seconds_counters_and_attempts() -> None:
    cluster = make_cluster(prompts=1, workers=[8, 8], spread=2)
    cluster.settle()
    [outcome] = cluster.outcomes.values()
    assert isinstance(outcome, PromptResult)
    assert outcome.seconds == 6.0, "three segments of two shards, one second each"
    assert outcome.counters == {"shards": 6}
    assert outcome.attempts == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("spread", 0), ("spread", "wide"), ("batches_in_flight", 0), ("max_attempts", 0), ("live_rows", 0)],
)
def test_impossible_settings_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        CoordinatorSettings(**{name: value})  # type: ignore[arg-type]
