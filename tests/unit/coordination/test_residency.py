"""Residency: what is reserved on a worker, and when that memory is free again."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.dummy_engine import DummyEngine
from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.decisions import Assign, Evict, Preempt, Requeue, Restart, Send, Start
from ttsvar_ray.coordination.live_prompt import LivePrompt
from ttsvar_ray.coordination.messages import Release, RunBatch, SegmentReport
from ttsvar_ray.coordination.placement import Assignment
from ttsvar_ray.coordination.residency import Residency
from ttsvar_ray.coordination.settings import CoordinatorSettings, SegmentLoad, Workload
from ttsvar_ray.coordination.workers import MemoryModel, Worker, WorkerState
from ttsvar_ray.search.operators.protocol import Choice
from ttsvar_ray.search.strategy import compile_plan

PLAN = compile_plan(
    scale_schedule=((1, 1), (2, 2), (3, 3), (4, 4)),
    strategy="tts-var",
    batch_schedule=[8, 6, 4, 4],
    cluster_scales=[1],
    resample_scales=[2],
    cluster_restarts=1,
)
ROWS = MemoryModel.in_rows(PLAN)
BYTES = MemoryModel.in_bytes(
    Workload(
        source="a test",
        segments=(
            SegmentLoad(tokens=5, held_bytes=10, running_bytes=15, batch_seconds=0.0, row_seconds=1.0),
            SegmentLoad(tokens=9, held_bytes=7, running_bytes=20, batch_seconds=0.0, row_seconds=1.0),
            SegmentLoad(tokens=16, held_bytes=0, running_bytes=100, batch_seconds=0.0, row_seconds=1.0),
        ),
    )
)
KEY = make_prompts(1)[0].key
CHOSEN = {6: (0, 0, 0, 0, 1, 2), 4: (0, 1, 2, 3)}
"""Ancestors by survivors."""


def choose(plan: Any, selection: Any, **seen: Any) -> Choice:
    """Keep the same ancestors, whatever was reported."""
    return Choice(ancestor_index=np.array(CHOSEN[selection.survivors]))


def assignment(**workers: range) -> Assignment:
    worker_of = {slot: worker for worker, slots in workers.items() for slot in slots}
    return Assignment(worker_of=worker_of, moved=0, reason="")


class Case:
    """One prompt on two workers; "a" has run its whole first population."""

    def __init__(self, memory: MemoryModel = ROWS, capacity: int = 10) -> None:
        self.residency = Residency(plan=PLAN, run_seed=0, settings=CoordinatorSettings(), selections=choose)
        self.a, self.b = (
            Worker(
                worker_id=name,
                memory=memory,
                capacity=capacity,
                least=memory.least,
                limits=[8] * 3,
                weights=(1.0,) * 3,
            )
            for name in "ab"
        )
        self.residency.workers.add(self.a)
        self.residency.workers.add(self.b)
        self.residency.enqueue(make_prompts(1)[0])
        self.engine = DummyEngine(plan=PLAN, run_seed=0)
        self.residency.apply(Start(prompt_key=KEY, assignment=assignment(a=range(8))))
        self.run("a", range(8))

    @property
    def live(self) -> LivePrompt:
        return self.residency.live[KEY]

    @property
    def reserved(self) -> tuple[int, int]:
        return self.a.reserved, self.b.reserved

    def send(self, worker_id: str, slots: range) -> RunBatch:
        index = self.live.segment.index
        send = Send(worker_id=worker_id, segment_index=index, slots={KEY: tuple(slots)}, runs_alone=False)
        self.residency.apply(send)
        batch = self.residency.take_actions()[-1]
        assert isinstance(batch, RunBatch)
        return batch

    def run(self, worker_id: str, slots: range) -> None:
        batch = self.send(worker_id, slots)
        [report] = self.engine.run_segment(batch.tasks)
        assert isinstance(report, SegmentReport)
        assert self.residency.finish_batch(self.residency.workers[worker_id], batch.batch_id) is not None
        self.residency.answered(self.live, report.slots)
        assert self.live.population.accept(report) is None

    def select(self) -> None:
        self.live.population.advance()
        self.residency.begin_segment(self.live)

    def assign(self, **workers: range) -> None:
        self.residency.apply(Assign(prompt_key=KEY, assignment=assignment(**workers)))

    def evict(self, worker_id: str) -> list[object]:
        self.residency.apply(Evict(prompt_key=KEY, worker_id=worker_id, reason="the test"))
        return list(self.residency.take_actions())


def test_children_take_their_parents_place_and_parents_count_while_held() -> None:
    case = Case()
    assert (case.a.reserved, case.a.free) == (8, 2)

    case.select()
    assert case.a.reserved == 8, "the parents are still there"
    assert case.residency.live[KEY].candidate(case.a).free == 10

    case.assign(a=range(2), b=range(2, 6))
    assert case.reserved == (8, 4)
    assert case.residency.live[KEY].candidate(case.a).free == 8
    assert case.residency.live[KEY].candidate(case.b).free == 6


def test_an_eviction_frees_what_was_held_and_keeps_what_waits() -> None:
    case = Case()
    case.select()
    case.assign(a=range(3), b=range(3, 6))

    assert case.evict("a") == [Release(worker_id="a", prompt_key=KEY, attempt=1)]

    assert case.a.reserved == 3
    assert case.a.backlog.num_rows == 3
    assert case.live.parents_on("a") == frozenset()
    assert case.evict("a") == [], "nothing is released twice"


def test_a_preempted_prompt_keeps_only_what_runs() -> None:
    case = Case()
    case.select()
    case.assign(a=range(3), b=range(3, 6))
    case.send("b", range(3, 6))

    case.residency.apply(Preempt(prompt_key=KEY, reason="the test"))

    released = [action.worker_id for action in case.residency.take_actions() if isinstance(action, Release)]
    assert released == ["a"]
    assert case.reserved == (0, 3)
    assert not case.a.backlog
    assert case.live.unassigned == [0, 1, 2]


def test_a_restart_leaves_nothing_of_the_attempt_before() -> None:
    case = Case()
    case.select()
    case.assign(a=range(3), b=range(3, 6))

    case.residency.apply(Restart(prompt_key=KEY, away_from="b", reason="the test"))

    assert case.reserved == (0, 0)
    assert not case.a.backlog
    assert not case.b.backlog
    live = case.live
    assert live.assigned == live.parent_holders == live.reserved == live.touched == {}
    assert (live.attempt, live.avoid, list(case.residency.unplaced)) == (2, {"b"}, [KEY])


def test_in_bytes_children_and_parents_count_and_memory_to_run_one_is_kept_free() -> None:
    assert BYTES.needed(0, slots=8, parents=0) == 80
    assert BYTES.needed(1, slots=6, parents=4) == 42 + 40
    assert BYTES.reserve == 100
    assert BYTES.least == 117
    a = Case(BYTES, capacity=200).a
    assert (a.reserved, a.free) == (80, 20)
    assert a.rows_that_fit(2) == 1, "one runs in what is reserved"
    assert a.rows_that_fit(0) == 8


def test_in_bytes_a_parent_that_is_not_there_counts_once_and_before_it_is_rebuilt() -> None:
    case = Case(BYTES, capacity=1_000)
    case.select()
    assert case.a.reserved == 80
    assert case.residency.live[KEY].candidate(case.a).parents == frozenset(range(8))
    assert case.residency.live[KEY].candidate(case.b).parent_memory == 10

    case.assign(a=range(3), b=range(3, 6))
    assert case.reserved == (80 + 21, 30 + 21)

    [task] = case.send("b", range(3, 5)).tasks
    assert set(task.parent_bits) == {0, 1}
    case.residency.answered(case.live, task.slots)
    case.residency.apply(Restart(prompt_key=KEY, away_from="a", reason="the test"))
    assert case.b.reserved == 0, "released, so that nothing is there any more"


def test_in_bytes_grandparents_count_until_a_task_makes_the_worker_forget_them() -> None:
    case = Case(BYTES, capacity=1_000)
    case.select()
    case.assign(a=range(6))
    case.run("a", range(6))
    assert case.a.reserved == 80 + 42
    case.select()
    assert case.a.reserved == 80 + 42, "the parents, and theirs"
    case.assign(a=range(4))
    assert case.a.reserved == 80 + 42
    case.send("a", range(4))
    assert case.a.reserved == 42


def test_in_bytes_a_parent_that_was_rebuilt_counts_where_its_children_have_left() -> None:
    case = Case(BYTES, capacity=1_000)
    case.select()
    case.assign(a=range(3), b=range(3, 5))
    case.send("b", range(3, 4))
    case.send("b", range(4, 5))
    case.residency.answered(case.live, (3,))
    case.residency.apply(Requeue(prompt_key=KEY, worker_id="b", slots=(3,), reason="the test"))

    case.residency.apply(Preempt(prompt_key=KEY, reason="the test"))

    assert case.live.assigned == {4: "b"}
    assert case.b.reserved == 20 + 7, "both parents, until the worker is told to forget them"


def test_what_goes_back_to_a_worker_that_drains_is_assigned_anew() -> None:
    case = Case()
    case.select()
    case.assign(b=range(6))
    case.send("b", range(3))
    case.residency.drain(case.b)
    assert case.live.unassigned == [3, 4, 5]
    assert list(case.residency.unplaced) == [KEY]
    case.residency.answered(case.live, (0, 1, 2))
    case.residency.apply(Requeue(prompt_key=KEY, worker_id="b", slots=(0, 1, 2), reason="the test"))
    assert case.live.unassigned == [0, 1, 2, 3, 4, 5]
    assert not case.b.backlog


def test_a_lost_worker_is_taken_out_with_all_that_it_held() -> None:
    case = Case()
    case.select()
    case.assign(a=range(3), b=range(3, 6))
    case.residency.lose(case.a)
    assert case.a.state is WorkerState.LOST
    assert case.a.state.is_terminal
    assert [worker.worker_id for worker in case.residency.workers] == ["b"]
    assert case.live.unassigned == [0, 1, 2]
    assert case.live.holder_of(range(6)) == {}
