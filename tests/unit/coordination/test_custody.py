"""Custody: what a worker is charged for, and when that room is free again."""

from __future__ import annotations

from tests.support.dummy_engine import DummyEngine
from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.actions import Release
from ttsvar_ray.coordination.custody import Custody
from ttsvar_ray.coordination.fleet import Fleet, Worker
from ttsvar_ray.coordination.live_prompt import LivePrompt
from ttsvar_ray.coordination.messages import SegmentReport
from ttsvar_ray.coordination.placement import Seating
from ttsvar_ray.coordination.population import Population
from ttsvar_ray.search.strategy import compile_plan

PLAN = compile_plan(
    scale_schedule=((1, 1), (2, 2), (3, 3)),
    strategy="tts-var",
    batch_schedule=[8, 6, 6],
    cluster_scales=[1],
    resample_scales=[],
    cluster_restarts=1,
)


def seating(**workers: range) -> Seating:
    worker_of = {slot: worker for worker, slots in workers.items() for slot in slots}
    return Seating(worker_of=worker_of, moved=0, reason="")


def start() -> tuple[Custody, LivePrompt, Worker, Worker]:
    """Return a prompt whose whole first population was run by worker "a"."""
    fleet = Fleet()
    a = Worker(worker_id="a", rows=8, live_limit=10)
    b = Worker(worker_id="b", rows=8, live_limit=10)
    fleet.add(a)
    fleet.add(b)
    custody = Custody(fleet)
    live = LivePrompt(population=Population(prompt=make_prompts(1)[0], plan=PLAN, run_seed=0))
    custody.sit_down(live, seating(a=range(8)))
    a.backlog.discard(live.key)
    live.touched["a"] = None
    task = live.population.task(range(8), attempt=1, held_parents=())
    [report] = DummyEngine(plan=PLAN, run_seed=0).run_segment([task])
    assert isinstance(report, SegmentReport)
    assert live.population.accept(report) is None
    return custody, live, a, b


def test_children_take_their_parents_place_and_parents_are_charged_while_held() -> None:
    custody, live, a, b = start()
    assert (a.live_rows, a.room) == (8, 2)

    live.population.advance()
    custody.begin_segment(live)
    assert a.live_rows == 8, "the parents are still there"
    assert custody.room_for(live, a) == 10

    custody.sit_down(live, seating(a=range(2), b=range(2, 6)))
    assert (a.live_rows, b.live_rows) == (8, 4)
    assert custody.room_for(live, a) == 8
    assert custody.room_for(live, b) == 6


def test_a_release_frees_what_was_held_and_keeps_what_waits() -> None:
    custody, live, a, _ = start()
    live.population.advance()
    custody.begin_segment(live)
    custody.sit_down(live, seating(a=range(3), b=range(3, 6)))

    assert custody.release(live, "a") == [Release(worker_id="a", prompt_key=live.key, attempt=1)]

    assert a.live_rows == 3
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
    assert (a.live_rows, b.live_rows) == (0, 3)
    assert not a.backlog
    assert live.unseated == [0, 1, 2]


def test_withdrawing_leaves_nothing() -> None:
    custody, live, a, b = start()
    live.population.advance()
    custody.begin_segment(live)
    custody.sit_down(live, seating(a=range(3), b=range(3, 6)))

    custody.withdraw(live)

    assert (a.live_rows, b.live_rows) == (0, 0)
    assert not a.backlog
    assert not b.backlog
    assert live.seats == live.parent_seats == live.charges == live.touched == {}
