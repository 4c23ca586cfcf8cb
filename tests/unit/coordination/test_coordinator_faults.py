"""What the coordinator does when workers or prompts fail."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.dummy_cluster import DummyCluster, check_all_correct, make_cluster
from tests.support.dummy_engine import FaultOf
from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.messages import (
    BatchDone,
    Emit,
    FailureKind,
    Release,
    RunBatch,
    SegmentReport,
    ShardTask,
)
from ttsvar_ray.results import PromptFailure


def fail_first(count: int, kind: FailureKind, *, segment_index: int) -> FaultOf:
    """Fail the first `count` tasks of a segment."""
    failed: list[ShardTask] = []

    def fault(task: ShardTask) -> FailureKind | None:
        if task.segment_index != segment_index or len(failed) >= count:
            return None
        failed.append(task)
        return kind

    return fault


def tasks(cluster: DummyCluster) -> list[tuple[str, ShardTask]]:
    return [(b.worker_id, task) for b in cluster.actions if isinstance(b, RunBatch) for task in b.tasks]


def run_until(cluster: DummyCluster, condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        if cluster.lease_requests:
            cluster.lease(most=1000)
        elif cluster.mail:
            cluster.deliver(0)
        else:
            cluster.work(next(name for name, worker in cluster.workers.items() if worker.queue))
    raise AssertionError("the condition was never met")


def test_lost_shards_run_elsewhere_from_the_bits_of_the_last_selection() -> None:
    cluster = make_cluster(prompts=1, workers=[8, 8], spread=2)
    run_until(cluster, lambda: any(task.segment_index == 1 for _, task in tasks(cluster)))
    lost = next(task for worker, task in tasks(cluster) if worker == "w1" and task.segment_index == 1)
    before = len(tasks(cluster))

    cluster.lose("w1")

    [(worker_id, again)] = tasks(cluster)[before:]
    assert worker_id == "w0"
    assert again.slots == lost.slots
    assert again.attempt == lost.attempt, "what w0 holds stays valid"
    held_by_w0 = {slot for worker, task in tasks(cluster)[:before] if worker == "w0" for slot in task.slots}
    assert set(again.parent_bits) == set(again.parent_slots) - held_by_w0
    assert all(len(bits) == 2 for bits in again.parent_bits.values())
    cluster.settle()
    check_all_correct(cluster)
    [outcome] = cluster.outcomes.values()
    assert outcome.attempts == 2


def test_lost_shards_of_the_first_segment_need_no_bits() -> None:
    cluster = make_cluster(prompts=2, workers=[8, 8])
    cluster.lease(most=10)
    before = len(tasks(cluster))
    cluster.lose("w0")
    assert all(task.parent_bits == {} for _, task in tasks(cluster)[before:])
    cluster.settle()
    check_all_correct(cluster)


def test_prompts_that_fill_the_only_worker_left_do_not_wait_for_each_other() -> None:
    cluster = make_cluster(prompts=2, workers=[8, 8], spread=2, live_rows=8)
    while cluster.lease_requests:
        cluster.lease(most=2)
    assert {len(task.slots) for _, task in tasks(cluster)} == {4}
    while cluster.workers["w0"].queue:
        cluster.work("w0")
        while cluster.mail:
            cluster.deliver(0)
    assert cluster.workers["w0"].engine.num_held == 8, "both halves are held here, in all its memory"

    cluster.lose("w1")
    cluster.settle()

    check_all_correct(cluster)


def test_the_last_worker_may_be_lost_and_another_one_takes_over() -> None:
    cluster = make_cluster(prompts=3, workers=[8])
    run_until(cluster, lambda: any(task.segment_index == 2 for _, task in tasks(cluster)))
    cluster.lose("w0")
    assert not cluster.coordinator.is_done
    cluster.join("w0", rows=4)
    cluster.settle()
    check_all_correct(cluster)


def test_results_of_lost_batches_and_repeated_results_are_dropped() -> None:
    cluster = make_cluster(prompts=1, workers=[8])
    cluster.lease(most=1)
    cluster.work("w0")
    late = cluster.mail.pop()
    cluster.lose("w0")
    assert cluster.coordinator.handle(late) == []
    cluster.join("w0", rows=8)
    assert cluster.coordinator.handle(late) == [], "not even where the name is in use again"
    cluster.work("w0")
    cluster.deliver(0, keep_copy=True)
    assert cluster.coordinator.handle(cluster.mail[0]) == []
    cluster.settle()
    check_all_correct(cluster)


def test_a_stale_worker_gets_the_same_shard_with_all_bits() -> None:
    cluster = make_cluster(prompts=1, workers=[8])
    run_until(cluster, lambda: any(task.segment_index == 1 for _, task in tasks(cluster)))
    cluster.workers["w0"].engine.forget_everything()
    cluster.settle()
    check_all_correct(cluster)
    first, second = [task for _, task in tasks(cluster) if task.segment_index == 1]
    assert first.parent_bits == {}
    assert set(second.parent_bits) == set(second.parent_slots)
    [outcome] = cluster.outcomes.values()
    assert outcome.attempts == 1, "the prompt has no part in it"


def test_a_worker_that_claims_stale_state_without_needing_any_fails_the_prompt() -> None:
    always = fail_first(10**6, FailureKind.STALE, segment_index=0)
    cluster = make_cluster(prompts=1, workers=[8], fault_of=always)
    cluster.settle()
    cluster.check_finished()
    [outcome] = cluster.outcomes.values()
    assert isinstance(outcome, PromptFailure)
    assert outcome.attempts == len(outcome.errors) == 3
    assert all("injected stale" in error for error in outcome.errors)
    assert [task.attempt for _, task in tasks(cluster)] == [1, 2, 3], "each attempt begins the segment anew"


def test_out_of_memory_halves_the_batches_of_that_segment_for_good_and_frees_what_is_held() -> None:
    cluster = make_cluster(
        prompts=6,
        workers=[16],
        batches_in_flight=1,
        fault_of=fail_first(2, FailureKind.MEMORY, segment_index=0),
    )
    cluster.settle()
    check_all_correct(cluster)
    first = [a.tasks for a in cluster.actions if isinstance(a, RunBatch) and a.tasks[0].segment_index == 0]
    sizes = [sum(len(task.slots) for task in batch) for batch in first]
    assert sizes[0] == 16
    assert max(sizes[1:]) == 8
    released = [action for action in cluster.actions if isinstance(action, Release)]
    assert len(released) > len(cluster.outcomes)
    assert all(outcome.attempts == 1 for outcome in cluster.outcomes.values())


def test_one_trajectory_that_does_not_fit_is_tried_elsewhere_then_given_up() -> None:
    cluster = make_cluster(
        prompts=1, workers=[1, 1], fault_of=fail_first(10**6, FailureKind.MEMORY, segment_index=0)
    )
    cluster.settle()
    cluster.check_finished()
    [outcome] = cluster.outcomes.values()
    assert isinstance(outcome, PromptFailure)
    assert len({worker for worker, _ in tasks(cluster)}) == 2


def test_a_failed_prompt_is_tried_elsewhere_as_a_new_attempt() -> None:
    cluster = make_cluster(
        prompts=1, workers=[8, 8], fault_of=fail_first(1, FailureKind.PROMPT, segment_index=1)
    )
    cluster.settle()
    check_all_correct(cluster)
    first, second = [(worker, t) for worker, t in tasks(cluster) if t.segment_index == 1]
    assert first[0] != second[0]
    assert (first[1].attempt, second[1].attempt) == (1, 2)
    assert set(second[1].parent_bits) == set(second[1].parent_slots)
    [outcome] = cluster.outcomes.values()
    assert outcome.attempts == 2


def test_a_prompt_that_keeps_failing_is_given_up_once_with_its_errors() -> None:
    def fault(task: ShardTask) -> FailureKind | None:
        return FailureKind.PROMPT if task.prompt.row == 1 and task.segment_index == 2 else None

    cluster = make_cluster(prompts=4, workers=[8, 8], spread=2, fault_of=fault)
    cluster.settle()
    cluster.check_finished()
    failures = [o for o in cluster.outcomes.values() if isinstance(o, PromptFailure)]
    assert [failure.prompt.row for failure in failures] == [1]
    assert failures[0].attempts == 3
    assert len(failures[0].errors) == 3
    assert "attempt 1, segment 2, worker w" in failures[0].errors[0]
    assert "injected prompt" in failures[0].errors[0]
    assert len([action for action in cluster.actions if isinstance(action, Emit)]) == 4


def test_a_population_that_cannot_be_compared_is_given_up_at_once() -> None:
    cluster = make_cluster(prompts=1, workers=[8])
    cluster.lease(most=1)
    cluster.work("w0")
    done = cluster.mail.pop()
    [report] = done.results
    assert isinstance(report, SegmentReport)
    assert report.features is not None
    report.features[3, 0] = float("nan")
    cluster.tell(done)
    [outcome] = cluster.outcomes.values()
    assert isinstance(outcome, PromptFailure)
    assert "FeatureError" in outcome.errors[0]


def test_a_batch_answered_without_a_result_counts_against_the_prompt() -> None:
    cluster = make_cluster(prompts=1, workers=[8], max_attempts=1)
    cluster.lease(most=1)
    cluster.tell(BatchDone(worker_id="w0", batch_id=0, results=()))
    [outcome] = cluster.outcomes.values()
    assert isinstance(outcome, PromptFailure)
    assert "without a result" in outcome.errors[0]


def test_a_draining_worker_finishes_what_runs_and_gets_nothing_new() -> None:
    cluster = make_cluster(prompts=6, workers=[8, 8])
    cluster.lease(most=3)
    cluster.drain("w0")
    before = len(tasks(cluster))
    cluster.settle()
    check_all_correct(cluster)
    assert {worker for worker, _ in tasks(cluster)[before:]} == {"w1"}
    assert any(task.parent_bits for _, task in tasks(cluster)[before:])
    cluster.lose("w0")
    assert cluster.coordinator.is_done


def test_a_worker_that_joins_again_has_lost_its_state() -> None:
    cluster = make_cluster(prompts=2, workers=[16])
    run_until(cluster, lambda: any(task.segment_index == 1 for _, task in tasks(cluster)))
    cluster.join("w0", rows=16)
    cluster.settle()
    check_all_correct(cluster)


def test_a_prompt_that_kills_is_found_and_its_neighbours_are_not_blamed() -> None:
    cluster = make_cluster(prompts=8, workers=[32, 32])
    deaths = 0

    def is_deadly(item: object) -> bool:
        return isinstance(item, RunBatch) and any(t.prompt.row == 2 for t in item.tasks)

    for _ in range(10_000):
        if cluster.lease_requests:
            cluster.lease(most=1000)
        elif cluster.mail:
            cluster.deliver(0)
        else:
            busy = [name for name, worker in cluster.workers.items() if worker.queue]
            if not busy:
                break
            if is_deadly(cluster.workers[busy[0]].queue[0]):
                deaths += 1
                cluster.lose(busy[0])
                cluster.join(f"replacement-{deaths}", rows=32)
            else:
                cluster.work(busy[0])
    cluster.check_finished()
    failures = [o for o in cluster.outcomes.values() if isinstance(o, PromptFailure)]
    assert [failure.prompt.row for failure in failures] == [2]
    assert deaths == 2 + 3, "two deaths in company raise the suspicion, three alone prove it"


def test_random_deaths_do_not_condemn_innocent_prompts() -> None:
    cluster = make_cluster(prompts=40, workers=[16, 16])
    for death in range(25):
        for _ in range(6):
            if cluster.lease_requests:
                cluster.lease(most=1000)
            elif cluster.mail:
                cluster.deliver(0)
            else:
                cluster.work(next(name for name, worker in cluster.workers.items() if worker.queue))
        cluster.lose(sorted(cluster.workers)[death % 2])
        cluster.join(f"r{death:02d}", rows=16)
    cluster.settle()
    check_all_correct(cluster)


def test_withdrawn_prompts_are_dropped_without_an_outcome_and_their_state_released() -> None:
    cluster = make_cluster(prompts=14, workers=[16, 16])
    while cluster.lease_requests:
        cluster.lease(most=14)
    assert cluster.coordinator.view.waiting
    live = next(iter(cluster.coordinator.view.live))
    waiting = next(iter(cluster.coordinator.view.waiting))
    for name in cluster.workers:
        cluster.work(name)
        cluster.deliver(0)

    cluster.withdraw([live, waiting, "never leased"], comes_back=False)

    cluster.settle()
    check_all_correct(cluster)
    assert not {live, waiting} & set(cluster.outcomes)
    assert len(cluster.outcomes) == 12


def test_withdrawing_the_last_prompts_ends_the_run_and_one_may_come_back() -> None:
    cluster = make_cluster(prompts=2, workers=[16])
    cluster.lease(most=2)
    keys = list(cluster.coordinator.view.live)
    cluster.withdraw(keys, comes_back=False)
    assert cluster.coordinator.is_done
    assert cluster.outcomes == {}
    cluster.settle()
    cluster.check_finished()

    again = make_cluster(prompts=2, workers=[16])
    again.lease(most=2)
    again.withdraw(keys[:1], comes_back=True)
    assert not again.coordinator.is_done
    again.settle()
    check_all_correct(again)
    assert set(again.outcomes) == set(keys)


def test_a_withdrawn_prompt_is_not_blamed_for_a_death_of_before() -> None:
    cluster = make_cluster(prompts=1, workers=[8], max_attempts=1)
    cluster.lease(most=1)
    [key] = cluster.coordinator.view.live
    cluster.withdraw([key], comes_back=False)
    cluster.lose("w0")
    cluster.join("w1", rows=8)
    cluster.add_prompts(make_prompts(1))
    cluster.hand_over()
    cluster.settle()
    check_all_correct(cluster)
    assert cluster.outcomes[key].attempts == 1


def test_prompts_that_turn_up_after_the_last_one_are_run_all_the_same() -> None:
    cluster = make_cluster(prompts=1, workers=[8])
    cluster.settle()
    assert cluster.coordinator.is_done
    cluster.add_prompts(make_prompts(3)[1:])
    cluster.hand_over()
    assert not cluster.coordinator.is_done
    cluster.settle()
    check_all_correct(cluster)
    assert len(cluster.outcomes) == 3


def test_state_that_is_lost_while_another_shard_runs_there_is_found_out_and_rebuilt() -> None:
    cluster = make_cluster(prompts=1, workers=[3], fault_of=fail_first(1, FailureKind.STALE, segment_index=1))
    run_until(cluster, lambda: sum(task.segment_index == 1 for _, task in tasks(cluster)) == 2)
    cluster.join("w1", rows=3)
    cluster.drain("w0")
    cluster.work("w0")
    cluster.deliver(0)
    released = [action for action in cluster.actions if isinstance(action, Release)]
    assert len(released) == 1, "it may hold a part"
    cluster.settle()
    check_all_correct(cluster)
    [outcome] = cluster.outcomes.values()
    assert outcome.attempts == 1
