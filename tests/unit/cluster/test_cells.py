"""The driver's side of cells: who is heard, who is ended, who comes back; without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from tests.support.plans import tts_var_plan
from tests.support.prompts import make_prompts
from tests.support.tiny_engine import TinyEngineBuilder
from ttsvar_ray.cluster import cells as cells_module
from ttsvar_ray.cluster.cell_messages import CellInfo, CellSpec, CellState, CellUpdate
from ttsvar_ray.cluster.cells import (
    MAX_FAILURES,
    SILENCE_TIMEOUT_SECONDS,
    START_TIMEOUT_SECONDS,
    CellLost,
    Cells,
)
from ttsvar_ray.cluster.resources import WorkerLayout
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.results import PromptFailure

OUTCOME = PromptFailure(prompt=make_prompts(1)[0], attempts=3, errors=("x",))


class FakeRef:
    """The answer to one call: not there until something is put into it."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer


class FakeCell:
    """The handle of one incarnation of a cell; a test says what it answers."""

    def __init__(self, spec: CellSpec) -> None:
        self.cell_id = spec.cell_id
        self.updates: list[FakeRef] = []
        self.calls: list[tuple[Any, ...]] = []
        self.call_answer: Any = "done"
        self.is_killed = False
        info = CellInfo(cell_id=spec.cell_id, node_ip="127.0.0.1", pid=1)
        self.first_workers: dict[int, Any] = {}
        self.start = SimpleNamespace(remote=lambda workers: self._start(workers, info))
        self.next_update = SimpleNamespace(remote=self._next_update)
        self.lease = SimpleNamespace(remote=lambda *args: self._call("lease", *args))
        self.withdraw = SimpleNamespace(remote=lambda *args: self._call("withdraw", *args))
        self.stop = SimpleNamespace(remote=lambda: self._call("stop"))

    def says(self, update: CellUpdate | Exception) -> None:
        """Answer what was asked last."""
        self.updates[-1].answer = update

    def _start(self, workers: dict[int, Any], info: CellInfo) -> FakeRef:
        self.first_workers = workers
        return FakeRef(info)

    def _next_update(self, _seconds: float) -> FakeRef:
        self.updates.append(FakeRef())
        return self.updates[-1]

    def _call(self, *call: Any) -> FakeRef:
        self.calls.append(call)
        return FakeRef(self.call_answer)


class Scene:
    """Cells, and all the incarnations that were begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.begun: list[FakeCell] = []
        self.cells = Cells(self._spec, count, scheduling="SPREAD")
        scene = self

        class Actor:
            @staticmethod
            def options(**_options: Any) -> Any:
                return SimpleNamespace(remote=scene._begin)

        def wait(
            refs: Sequence[FakeRef], *, timeout: float, num_returns: int = 1
        ) -> tuple[list[FakeRef], list[FakeRef]]:
            ready = [ref for ref in refs if ref.answer is not None]
            return ready, [ref for ref in refs if ref.answer is None]

        def get(ref: FakeRef, *, seconds: float, awaited: str) -> Any:
            if isinstance(ref.answer, Exception):
                raise ref.answer
            return ref.answer

        def kill(actor: FakeCell) -> None:
            actor.is_killed = True

        monkeypatch.setattr(cells_module, "CellActor", Actor)
        monkeypatch.setattr(cells_module, "first_workers", self._workers)
        monkeypatch.setattr(cells_module, "get", get)
        monkeypatch.setattr(cells_module, "timeout_message", lambda seconds, awaited: f"no {awaited}")
        monkeypatch.setattr(cells_module, "ray", SimpleNamespace(wait=wait, kill=kill))

    def news(self, now: float) -> list[tuple[str, CellUpdate | CellLost]]:
        ready = [ref for ref in self.cells.updates if ref.answer is not None]
        return self.cells.news(ready, now)

    def _begin(self, spec: CellSpec) -> FakeCell:
        self.begun.append(FakeCell(spec))
        return self.begun[-1]

    @staticmethod
    def _workers(spec: CellSpec) -> dict[int, Any]:
        return {number: SimpleNamespace(is_killed=False) for number in spec.worker_numbers}

    @staticmethod
    def _spec(index: int, incarnation: int) -> CellSpec:
        return CellSpec(
            cell_id=f"cell-{index}.{incarnation}",
            incarnation=incarnation,
            plan=tts_var_plan(),
            run_seed=0,
            settings=CoordinatorSettings(),
            build_engine=TinyEngineBuilder(seed=0),
            layout=WorkerLayout(count=2, cpus=1.0, gpus=0.0),
            actor_prefix="test-",
        )


def test_news_are_told_and_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, 2)
    scene.cells.start_due(0.0)
    assert scene.news(0.0) == []
    update = CellUpdate(state=CellState.RUNNING, workers=3)
    scene.begun[1].says(update)
    assert scene.news(1.0) == [("cell-1.0", update)]
    assert scene.cells.num_workers == 3
    assert [len(life.updates) for life in scene.begun] == [1, 2]
    assert scene.news(2.0) == []


def test_leases_reach_their_cell_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, 2)
    scene.cells.start_due(0.0)
    prompts = make_prompts(2)
    scene.cells.lease("cell-1.0", prompts, False)
    scene.cells.withdraw("cell-0.0", ("a#0",))
    scene.cells.lease("cell-7.0", prompts, False)
    assert scene.begun[0].calls == [("withdraw", ("a#0",))]
    assert scene.begun[1].calls == [("lease", prompts, False)]


def test_a_dead_cell_is_started_anew_under_another_name_after_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, 2)
    scene.cells.start_due(0.0)
    scene.begun[0].says(ActorDiedError())
    ((cell_id, lost),) = scene.news(10.0)
    assert cell_id == "cell-0.0" and isinstance(lost, CellLost) and lost.comes_back
    assert scene.begun[0].is_killed
    assert [worker.is_killed for worker in scene.begun[0].first_workers.values()] == [True, True]
    assert not any(worker.is_killed for worker in scene.begun[1].first_workers.values())
    scene.cells.start_due(10.5)
    assert len(scene.begun) == 2
    scene.cells.start_due(11.0)
    assert [life.cell_id for life in scene.begun] == ["cell-0.0", "cell-1.0", "cell-0.1"]
    assert scene.cells.failure is None


@pytest.mark.parametrize("way", ["broken", "call", "silent", "never up"])
def test_a_cell_that_is_of_no_use_is_ended(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    scene = Scene(monkeypatch, 1)
    scene.cells.start_due(0.0)
    (life,) = scene.begun
    if way == "broken":
        life.says(CellUpdate(state=CellState.BROKEN, reason="KeyError: a bug", outcomes=(OUTCOME,)))
        (_, told), (_, lost) = scene.news(1.0)
        assert isinstance(told, CellUpdate) and told.outcomes == (OUTCOME,), "its last words count"
    elif way == "call":
        life.call_answer = ActorDiedError()
        scene.cells.lease("cell-0.0", (), True)
        ((_, lost),) = scene.news(1.0)
    elif way == "silent":
        life.says(CellUpdate())
        scene.news(1.0)
        assert scene.news(SILENCE_TIMEOUT_SECONDS) == []
        ((_, lost),) = scene.news(2.0 + SILENCE_TIMEOUT_SECONDS)
    else:
        assert scene.news(START_TIMEOUT_SECONDS) == []
        ((_, lost),) = scene.news(1.0 + START_TIMEOUT_SECONDS)
    assert isinstance(lost, CellLost)
    assert life.is_killed
    assert scene.cells.updates == []


def test_a_cell_that_dies_again_and_again_is_given_up_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, 2)
    now = 0.0
    scene.cells.start_due(now)
    other = scene.begun[1]
    comes_back = []
    while scene.cells.updates != [other.updates[-1]]:
        now += 100.0
        scene.begun[-1 if len(scene.begun) > 2 else 0].says(ActorDiedError())
        other.says(CellUpdate(state=CellState.RUNNING, workers=1, outcomes=(OUTCOME,)))
        comes_back += [lost.comes_back for _, lost in scene.news(now) if isinstance(lost, CellLost)]
        scene.cells.start_due(now + 50.0)
    assert comes_back == [True] * MAX_FAILURES + [False]
    assert scene.cells.failure is None
    for _ in range(MAX_FAILURES + 1):
        now += 100.0
        scene.cells.start_due(now)
        scene.begun[-1 if scene.begun[-1].cell_id.startswith("cell-1") else 1].says(ActorDiedError())
        scene.news(now)
    assert "the last coordinator is given up: ActorDiedError" in (scene.cells.failure or "")


def test_a_cell_that_finished_something_has_its_deaths_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, 1)
    now = 0.0
    for _ in range(3 * MAX_FAILURES):
        now += 100.0
        scene.cells.start_due(now)
        scene.begun[-1].says(CellUpdate(outcomes=(OUTCOME,)))
        scene.news(now)
        scene.begun[-1].says(ActorDiedError())
        ((_, lost),) = scene.news(now)
        assert isinstance(lost, CellLost) and lost.comes_back


def test_a_run_fails_when_every_cell_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, 2)
    scene.cells.start_due(0.0)
    scene.begun[0].says(CellUpdate(state=CellState.STUCK, reason="no driver"))
    scene.news(1.0)
    assert scene.cells.failure is None
    scene.begun[1].says(CellUpdate(state=CellState.RUNNING, workers=1))
    scene.news(1.0)
    assert scene.cells.failure is None
    scene.begun[1].says(CellUpdate(state=CellState.STUCK, reason="no driver"))
    scene.news(1.0)
    assert scene.cells.failure == "no worker could be started; the last error was: no driver"


def test_one_engine_that_cannot_be_built_ends_no_run_that_had_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, 1)
    scene.cells.start_due(0.0)
    scene.begun[0].says(CellUpdate(state=CellState.RUNNING, workers=2))
    scene.news(1.0)
    scene.begun[0].says(ActorDiedError())
    scene.news(2.0)
    scene.cells.start_due(100.0)
    # Of the second incarnation one worker has failed; the other one is still starting.
    scene.begun[1].says(CellUpdate(state=CellState.UNUSABLE, reason="worker-0.1.0 cannot be built"))
    scene.news(101.0)
    assert scene.cells.failure is None


def test_all_cells_end(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, 2)
    scene.cells.start_due(0.0)
    scene.cells.stop(in_order=True)
    assert all(life.calls == [("stop",)] and life.is_killed for life in scene.begun)
    scene.cells.start_due(1e9)
    assert len(scene.begun) == 2
