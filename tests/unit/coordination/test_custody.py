"""Custody: what a worker is charged for, and when that room is free again."""

from __future__ import annotations

from tests.support.dummy_engine import DummyEngine
from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.custody import Custody
from ttsvar_ray.coordination.fleet import Fleet, Worker
from ttsvar_ray.coordination.live_prompt import LivePrompt
from ttsvar_ray.coordination.messages import Release, SegmentReport
from ttsvar_ray.coordination.placement import Seating
from ttsvar_ray.coordination.population import Population
from ttsvar_ray.coordination.tariff import Tariff, byte_tariff, row_tariff
from ttsvar_ray.coordination.workload import SegmentLoad, Workload
from ttsvar_ray.search.strategy import compile_plan

PLAN = compile_plan(
    scale_schedule=((1, 1), (2, 2), (3, 3)),
    strategy="tts-var",
    batch_schedule=[8, 6, 6],
    cluster_scales=[1],
    resample_scales=[],
    cluster_restarts=1,
)

ROWS = row_tariff(PLAN)


def seating(**workers: range) -> Seating:
    worker_of = {slot: worker for worker, slots in workers.items() for slot in slots}
    return Seating(worker_of=worker_of, moved=0, reason="")


def make_worker(worker_id: str, tariff: Tariff, capacity: int) -> Worker:
    return Worker(
        worker_id=worker_id,
        tariff=tariff,
        capacity=capacity,
        least=tariff.least,
        limits=[8, 8],
        weights=(1.0, 1.0),
    )


def start(tariff: Tariff = ROWS, capacity: int = 10) -> tuple[Custody, LivePrompt, Worker, Worker]:
    """Return a prompt whose whole first population was run by worker "a"."""
    fleet = Fleet()
    a, b = make_worker("a", tariff, capacity), make_worker("b", tariff, capacity)
    fleet.add(a)
    fleet.add(b)
    custody = Custody(fleet)
    live = LivePrompt(population=Population(prompt=make_prompts(1)[0], plan=PLAN, run_seed=0))
    custody.sit_down(live, seating(a=range(8)))
    a.backlog.discard(live.key)
    task = live.population.task(range(8), attempt=1, held_parents=())
    custody.sent(live, a, task, 1)
    live.in_flight.clear()
    [report] = DummyEngine(plan=PLAN, run_seed=0).run_segment([task])
    assert isinstance(report, SegmentReport)
    assert live.population.accept(report) is None
    return custody, live, a, b


def test_children_take_their_parents_place_and_parents_are_charged_while_held() -> None:
    custody, live, a, b = start()
    assert (a.charged, a.room) == (8, 2)

    live.population.advance()
    custody.begin_segment(live)
    assert a.charged == 8, "the parents are still there"
    assert custody.candidate(live, a).room == 10

    custody.sit_down(live, seating(a=range(2), b=range(2, 6)))
    assert (a.charged, b.charged) == (8, 4)
    assert custody.candidate(live, a).room == 8
    assert custody.candidate(live, b).room == 6


def test_a_release_frees_what_was_held_and_keeps_what_waits() -> None:
    custody, live, a, _ = start()
    live.population.advance()
    custody.begin_segment(live)
    custody.sit_down(live, seating(a=range(3), b=range(3, 6)))

    assert custody.release(live, "a") == [Release(worker_id="a", prompt_key=live.key, attempt=1)]

    assert a.charged == 3
    assert a.backlog.num_rows == 3
    assert live.parents_on("a") == frozenset()
    assert custody.release(live, "a") == [], "nothing is released twice"


def test_parking_keeps_only_what_runs() -> None:
    custody, live, a, b = start()
    live.population.advance()
    custody.begin_segment(live)
    custody.sit_down(live, seating(a=range(3), b=range(3, 6)))
    b.backlog.discard(live.key)
    live.in_flight.update(dict.fromkeys(range(3, 6), 7))
    live.touched["b"] = None

    releases = custody.park(live)

    assert [release.worker_id for release in releases] == ["a"]
    assert (a.charged, b.charged) == (0, 3)
    assert not a.backlog
    assert live.unseated == [0, 1, 2]


def test_withdrawing_leaves_nothing() -> None:
    custody, live, a, b = start()
    live.population.advance()
    custody.begin_segment(live)
    custody.sit_down(live, seating(a=range(3), b=range(3, 6)))

    custody.withdraw(live)

    assert (a.charged, b.charged) == (0, 0)
    assert not a.backlog
    assert not b.backlog
    assert live.seats == live.parent_seats == live.charges == live.touched == {}


BYTES = byte_tariff(
    Workload(
        source="a test",
        segments=(
            SegmentLoad(tokens=5, held_bytes=10, running_bytes=15, batch_seconds=0.0, row_seconds=1.0),
            SegmentLoad(tokens=9, held_bytes=0, running_bytes=100, batch_seconds=0.0, row_seconds=1.0),
        ),
    )
)


def test_a_byte_tariff_counts_children_and_parents_and_keeps_room_to_run_one() -> None:
    assert BYTES.charge(0, slots=8, parents=0) == 80
    assert BYTES.charge(1, slots=6, parents=4) == 40
    assert BYTES.reserve == 100
    assert BYTES.least == 110
    _, _, a, _ = start(BYTES, capacity=200)
    assert (a.charged, a.room) == (80, 20)
    assert a.rows_that_fit(1) == 1, "one runs in what is reserved"
    assert a.rows_that_fit(0) == 8


def test_in_bytes_a_parent_that_is_not_there_is_paid_for_once_and_before_it_is_rebuilt() -> None:
    custody, live, a, b = start(BYTES, capacity=1_000)
    live.population.advance()
    custody.begin_segment(live)
    assert a.charged == 80
    assert custody.candidate(live, a).parents == frozenset(range(8))
    assert custody.candidate(live, b).parent_price == 10

    live.population._parent_slots = (0, 0, 0, 0, 1, 2)
    custody.sit_down(live, seating(a=range(3), b=range(3, 6)))
    assert (a.charged, b.charged) == (80, 30)

    task = live.population.task((3, 4), attempt=1, held_parents=live.parents_on("b"))
    assert set(task.parent_bits) == {0, 1}
    custody.sent(live, b, task, 7)
    live.in_flight.clear()
    custody.park(live)
    assert b.charged == 0, "released, so that nothing is there any more"


def test_in_bytes_grandparents_are_charged_until_a_task_makes_the_worker_forget_them() -> None:
    custody, live, a, _ = start(BYTES, capacity=1_000)
    live.population.advance()
    custody.begin_segment(live)
    live.lingering["a"] = 33
    custody.sit_down(live, seating(a=range(6)))
    assert a.charged == 33 + 80
    task = live.population.task(range(6), attempt=1, held_parents=live.parents_on("a"))
    custody.sent(live, a, task, 7)
    assert a.charged == 80


def test_in_bytes_a_parent_that_was_rebuilt_stays_charged_where_its_children_leave() -> None:
    custody, live, _, b = start(BYTES, capacity=1_000)
    live.population.advance()
    custody.begin_segment(live)
    live.population._parent_slots = (0, 0, 0, 0, 1, 2)
    custody.sit_down(live, seating(a=range(3), b=range(3, 5)))
    b.backlog.discard(live.key)
    for slot, batch_id in ((3, 7), (4, 8)):
        custody.sent(live, b, live.population.task((slot,), attempt=1, held_parents=()), batch_id)
    del live.in_flight[3]
    custody.wait(live, b, [3])

    custody.park(live)

    assert live.seats == {4: "b"}
    assert b.charged == 20, "of both parents, until the worker is told to forget them"
