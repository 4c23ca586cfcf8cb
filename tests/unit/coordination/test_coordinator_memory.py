"""Memory in bytes: what is admitted, how large batches are, what happens where little fits.

`DummyCluster` checks at every batch that what its worker holds and runs fits into the worker's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.dummy_cluster import FOUR_SCALES, DummyCluster, check_all_correct, make_cluster
from ttsvar_ray.coordination.coordinator import Coordinator
from ttsvar_ray.coordination.messages import FailureKind, RunBatch, ShardTask
from ttsvar_ray.coordination.settings import CoordinatorSettings, SegmentLoad, Spread, Workload
from ttsvar_ray.coordination.workers import MemoryModel
from ttsvar_ray.results import PromptFailure


def load(tokens: int, held_bytes: int, running_bytes: int) -> SegmentLoad:
    return SegmentLoad(
        tokens=tokens,
        held_bytes=held_bytes,
        running_bytes=running_bytes,
        batch_seconds=0.1,
        row_seconds=0.1,
        replay_seconds=0.01,
    )


WORKLOAD = Workload(source="a test", segments=(load(5, 2, 4), load(9, 10, 20), load(16, 0, 100)))
"""As in real models: trajectories become few and large."""
LEAST = MemoryModel.in_bytes(WORKLOAD).least


def cluster_of(
    prompts: int, memory: Sequence[int | None], *, rows: int = 32, **settings: Any
) -> DummyCluster:
    """Return a cluster with one worker per entry of `memory`."""
    return make_cluster(prompts, [rows] * len(memory), memory=memory, workload=WORKLOAD, **settings)


def rows_of_batches(cluster: DummyCluster, segment_index: int) -> list[int]:
    batches = [action for action in cluster.actions if isinstance(action, RunBatch)]
    of_segment = [batch for batch in batches if batch.tasks[0].segment_index == segment_index]
    return [sum(len(task.slots) for task in batch.tasks) for batch in of_segment]


def test_many_are_early_and_few_are_late() -> None:
    cluster = cluster_of(40, [1_000])
    cluster.settle()
    check_all_correct(cluster)
    assert max(rows_of_batches(cluster, 0)) == 32
    assert max(rows_of_batches(cluster, 2)) == 4, "half of the memory is for what runs: two prompts of two"
    assert cluster.workers["w0"].engine.replayed == 0, "what is started never has to be preempted"


def test_memory_that_is_not_told_leaves_the_limits_of_rows() -> None:
    cluster = cluster_of(40, [None])
    cluster.settle()
    check_all_correct(cluster)
    assert max(rows_of_batches(cluster, 2)) > 4


def test_a_worker_that_just_fits_one_trajectory_runs_whole_prompts_in_chunks() -> None:
    assert LEAST == 2 + 10 + 100
    cluster = cluster_of(5, [LEAST])
    cluster.settle()
    check_all_correct(cluster)
    assert set(rows_of_batches(cluster, 1)) == {1}
    assert set(rows_of_batches(cluster, 2)) == {1}
    assert cluster.workers["w0"].engine.replayed > 0
    assert all(outcome.attempts == 1 for outcome in cluster.outcomes.values())


@pytest.mark.parametrize("spread", [1, 2, "auto"])
def test_small_and_large_workers_share_a_run(spread: Spread) -> None:
    cluster = cluster_of(12, [LEAST, LEAST + 9, 5_000, None], spread=spread)
    cluster.settle()
    check_all_correct(cluster)
    used = {action.worker_id for action in cluster.actions if isinstance(action, RunBatch)}
    assert used == set(cluster.workers)


def test_a_chunked_prompt_survives_its_worker() -> None:
    cluster = cluster_of(3, [LEAST])
    for _ in range(3):
        for _ in range(9):
            if cluster.lease_requests:
                cluster.lease(most=3)
            elif cluster.mail:
                cluster.deliver(0)
            else:
                cluster.work("w0")
        cluster.lose("w0")
        cluster.join("w0", 32, LEAST)
    cluster.drain("w0")
    cluster.join("w1", 32, LEAST)
    cluster.settle()
    check_all_correct(cluster)


def test_a_worker_that_cannot_fit_one_trajectory_is_refused_with_the_numbers() -> None:
    cluster = cluster_of(2, [LEAST - 1, LEAST])
    assert set(cluster.workers) == {"w1"}
    reason = cluster.refused["w0"]
    assert "1.11e-07 GB" in reason
    assert "at least 1.12e-07 GB" in reason
    assert "a test" in reason
    cluster.settle()
    check_all_correct(cluster)


def test_a_token_budget_bounds_batches_but_one_trajectory_always_runs() -> None:
    cluster = cluster_of(20, [100_000], batch_tokens=40)
    cluster.settle()
    check_all_correct(cluster)
    assert max(rows_of_batches(cluster, 0)) == 8
    assert max(rows_of_batches(cluster, 1)) == 4
    assert max(rows_of_batches(cluster, 2)) == 2
    tight = cluster_of(2, [100_000], batch_tokens=1)
    tight.settle()
    check_all_correct(tight)
    assert {rows for segment in range(3) for rows in rows_of_batches(tight, segment)} == {1}


def test_out_of_memory_lowers_the_batches_of_one_segment() -> None:
    failed: list[ShardTask] = []

    def fault(task: ShardTask) -> FailureKind | None:
        if task.segment_index != 1 or failed:
            return None
        failed.append(task)
        return FailureKind.MEMORY

    cluster = cluster_of(30, [100_000], fault_of=fault)
    cluster.settle()
    check_all_correct(cluster)
    failing, in_flight, *later = rows_of_batches(cluster, 1)
    assert failing == in_flight == 30
    assert max(later) <= 15
    assert max(rows_of_batches(cluster, 0)) == 32


def test_one_trajectory_that_finds_no_memory_makes_its_worker_hold_less_before_it_is_blamed() -> None:
    failed: list[ShardTask] = []

    def fault(task: ShardTask) -> FailureKind | None:
        if task.segment_index != 2 or failed:
            return None
        failed.append(task)
        return FailureKind.MEMORY

    cluster = cluster_of(6, [2_000], rows=1, fault_of=fault)
    cluster.settle()
    check_all_correct(cluster)
    assert failed
    assert all(outcome.attempts == 1 for outcome in cluster.outcomes.values())


def test_one_trajectory_that_never_fits_is_given_up() -> None:
    def fault(task: ShardTask) -> FailureKind | None:
        return FailureKind.MEMORY if task.prompt.row == 0 and task.segment_index == 2 else None

    cluster = cluster_of(3, [2_000, 2_000], fault_of=fault)
    cluster.settle()
    cluster.check_finished()
    failures = [outcome for outcome in cluster.outcomes.values() if isinstance(outcome, PromptFailure)]
    assert [failure.prompt.row for failure in failures] == [0]


def test_a_workload_for_another_plan_is_refused() -> None:
    workload = Workload(source="a test", segments=WORKLOAD.segments[:2])
    with pytest.raises(ValueError, match="3 segments, got 2"):
        Coordinator(plan=FOUR_SCALES, run_seed=0, settings=CoordinatorSettings(), workload=workload)
