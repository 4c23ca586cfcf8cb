"""A cell over workers that fail in every way Ray knows, in one event loop, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectStoreFullError,
    OutOfMemoryError,
    RayError,
)

from tests.support.fake_workers import FakeGroup
from tests.support.plans import tts_var_plan
from tests.support.prompts import make_prompts
from tests.support.tiny_engine import TinyEngineBuilder
from ttsvar_ray.cluster import cell as cell_module
from ttsvar_ray.cluster import worker_pool as pool_module
from ttsvar_ray.cluster.cell import Cell
from ttsvar_ray.cluster.cell_messages import CellSpec, CellState, CellUpdate
from ttsvar_ray.cluster.resources import WorkerLayout
from ttsvar_ray.coordination.settings import CoordinatorSettings, SegmentLoad, Workload
from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.results import PackedBits, PromptFailure, PromptResult

SEED = 3
PROMPTS = 6
Outcomes = dict[str, "PackedBits | str"]


class Scene:
    """One cell, its news so far, and the nodes that are being drained."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, group: FakeGroup, *, workers: int = 2) -> None:
        self.group = group
        self.draining: dict[str, float] = {}
        self.time = 0.0
        self.notices: list[str] = []
        self.outcomes: list[PromptResult | PromptFailure] = []
        scene = self

        class Watch:
            unavailable = None

            def __init__(self, address: str) -> None:
                pass

            def poll(self) -> dict[str, float]:
                return scene.draining

        class Context:
            gcs_address = "nowhere"

        for name, value in {
            "DrainWatch": Watch,
            "PatientClock": lambda: lambda: scene.time,
            "TICK_SECONDS": 0.001,
            "DRAIN_POLL_SECONDS": 0.001,
            "STORE_FULL_PAUSE_SECONDS": 0.0,
        }.items():
            monkeypatch.setattr(cell_module, name, value)
        monkeypatch.setattr(pool_module, "WorkerActor", group)
        monkeypatch.setattr(pool_module, "RETRY_FIRST_SECONDS", 0.0)
        monkeypatch.setattr(cell_module.ray, "kill", group.kill)
        monkeypatch.setattr(cell_module.ray, "get_runtime_context", Context)
        monkeypatch.setattr(cell_module.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
        self.spec = CellSpec(
            cell_id="cell-0",
            plan=tts_var_plan(),
            run_seed=SEED,
            settings=CoordinatorSettings(deadline_ceiling_seconds=100.0),
            build_engine=TinyEngineBuilder(seed=SEED),
            layout=WorkerLayout(count=workers, cpus=1.0, gpus=0.0),
            actor_prefix="test-",
        )

    async def start(self) -> Cell:
        cell = Cell(self.spec)
        await cell.start(pool_module.first_workers(self.spec))
        return cell

    async def run(self, meanwhile: Callable[[], None] = lambda: None) -> Outcomes:
        """Run the prompts to their end and return what came of each."""
        cell = await self.start()
        prompts = make_prompts(PROMPTS)
        while len(self.outcomes) < PROMPTS:
            meanwhile()
            update = await cell.next_update(0.01)
            assert update.state is not CellState.BROKEN, update.reason
            self.notices += update.notices
            self.outcomes += update.outcomes
            for count in update.lease_requests:
                given, prompts = prompts[:count], prompts[count:]
                await cell.lease(given, is_last=not prompts)
        for _ in range(20):
            await cell.next_update(0.001)
        self.workers = list(cell._workers)
        await cell.stop()
        return {
            outcome.prompt.key: outcome.images[0].bits
            if isinstance(outcome, PromptResult)
            else outcome.errors[-1]
            for outcome in self.outcomes
        }


@pytest.fixture(scope="module")
def expected() -> Outcomes:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return asyncio.run(Scene(monkeypatch, FakeGroup(), workers=1).run())


def test_two_workers_do_the_work_of_one(monkeypatch: pytest.MonkeyPatch, expected: Outcomes) -> None:
    scene = Scene(monkeypatch, FakeGroup())
    assert asyncio.run(scene.run()) == expected
    assert scene.notices == []
    assert scene.group.started == ["worker-0", "worker-1"]


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ActorUnavailableError("a connection was lost", None),
        OutOfMemoryError("the node ran out of memory"),
    ],
    ids=["died", "unavailable", "host memory"],
)
def test_a_worker_that_ray_gives_up_is_replaced(
    monkeypatch: pytest.MonkeyPatch, expected: Outcomes, error: Exception
) -> None:
    """Also where Ray only lost sight of it: the call may have run, and its worker must not go on beside."""
    scene = Scene(
        monkeypatch, FakeGroup(fault=lambda worker, n: error if (worker, n) == ("worker-1", 2) else None)
    )
    assert asyncio.run(scene.run()) == expected
    assert "worker-1" in scene.group.killed and "worker-1.1" in scene.group.started
    (notice,) = scene.notices
    assert notice.startswith("worker-1 is lost (") and "go on from their last selection" in notice


def test_a_worker_that_hangs_is_abandoned_with_what_it_says(
    monkeypatch: pytest.MonkeyPatch, expected: Outcomes
) -> None:
    scene = Scene(
        monkeypatch, FakeGroup(fault=lambda worker, n: "hang" if (worker, n) == ("worker-0", 2) else None)
    )

    def time_goes_on() -> None:
        scene.time += 5.0

    assert asyncio.run(scene.run(time_goes_on)) == expected
    (notice,) = [notice for notice in scene.notices if notice.startswith("worker-0 is lost")]
    assert "it says: micro-batch 7 since 9 s" in notice


def test_a_full_object_store_makes_batches_smaller_and_costs_no_worker(
    monkeypatch: pytest.MonkeyPatch, expected: Outcomes
) -> None:
    scene = Scene(
        monkeypatch,
        FakeGroup(
            fault=lambda worker, n: ObjectStoreFullError("full") if (worker, n) == ("worker-0", 2) else None
        ),
    )
    assert asyncio.run(scene.run()) == expected
    assert scene.group.started == ["worker-0", "worker-1"]
    (notice,) = scene.notices
    assert "going on with fewer images at a time" in notice


@pytest.mark.parametrize("ends", ["wait", "wait and die"])
def test_a_worker_of_a_node_that_goes_finishes_and_is_replaced_once(
    monkeypatch: pytest.MonkeyPatch, expected: Outcomes, ends: str
) -> None:
    """The news of its node comes while its first batch runs, which is over only after it."""

    def fault(worker: str, n: int) -> str | None:
        if (worker, n) != ("worker-0", 1):
            return None
        scene.draining = {"node-of-worker-0": 30.0}
        return ends

    group = FakeGroup(fault=fault)
    scene = Scene(monkeypatch, group)

    def go_on_when_told() -> None:
        if scene.notices:
            group.gate.set()

    assert asyncio.run(scene.run(go_on_when_told)) == expected
    assert group.started == ["worker-0", "worker-1", "worker-0.1"]
    assert group.killed[0] == "worker-0"
    assert sorted(scene.workers) == ["worker-0.1", "worker-1"]
    assert scene.notices[0].startswith("worker-0 is on a node that is taken away (in 30 s)")
    assert [n for n in scene.notices[1:] if "is lost" in n] == scene.notices[1:]
    assert len(scene.notices) == (1 if ends == "wait" else 2)


def test_workers_are_tried_until_something_starts(
    monkeypatch: pytest.MonkeyPatch, expected: Outcomes
) -> None:
    def start_fault(worker_id: str) -> Exception | None:
        return None if worker_id == "worker-0.9" else ActorDiedError()

    scene = Scene(monkeypatch, FakeGroup(start_fault=start_fault), workers=1)
    assert asyncio.run(scene.run()) == expected
    assert scene.group.started == ["worker-0", *(f"worker-0.{n}" for n in range(1, 10))]
    failures = [notice for notice in scene.notices if "failed to start" in notice]
    assert len(failures) == 5, "the first three, then ever fewer"


def test_a_cell_without_workers_says_that_it_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, FakeGroup(start_fault=lambda worker: ActorDiedError()), workers=2)

    async def wait() -> str | None:
        cell = await scene.start()
        stuck = None
        while stuck is None:
            update = await cell.next_update(0.01)
            assert update.state in (CellState.STARTING, CellState.STUCK)
            stuck = update.reason or None
        await cell.stop()
        return stuck

    assert "ActorDiedError" in (asyncio.run(wait()) or "")
    assert len(scene.group.started) >= 6


def test_an_engine_that_cannot_be_built_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class UnusableError(CheckpointError, RayError):
        """As Ray raises an error of ours that a method raised."""

    group = FakeGroup(start_fault=lambda worker: UnusableError("weights of another model"))
    scene = Scene(monkeypatch, group, workers=1)

    async def wait() -> str:
        cell = await scene.start()
        while (update := await cell.next_update(0.01)).state is CellState.STARTING:
            pass
        await cell.stop()
        assert update.state is CellState.UNUSABLE
        return update.reason

    assert "worker-0 cannot be built: " in asyncio.run(wait())


def test_engines_that_can_be_built_nowhere_leave_a_cell_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    class UnusableError(CheckpointError, RayError):
        """As Ray raises an error of ours that a method raised."""

    group = FakeGroup(start_fault=lambda worker: UnusableError("weights of another model"))
    scene = Scene(monkeypatch, group, workers=2)

    async def wait() -> list[CellState]:
        cell = await scene.start()
        states = [CellState.STARTING]
        while states[-1] is not CellState.STUCK:
            states.append((await cell.next_update(0.01)).state)
        await cell.stop()
        return list(dict.fromkeys(states))

    states = asyncio.run(asyncio.wait_for(wait(), timeout=20))
    assert states == [CellState.STARTING, CellState.UNUSABLE, CellState.STUCK]


def test_workers_too_small_for_the_plan_make_a_cell_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, FakeGroup(memory_bytes=99), workers=1)
    load = SegmentLoad(tokens=1, held_bytes=60, running_bytes=70, batch_seconds=0.1, row_seconds=0.1)
    loads = tuple(load for _ in scene.spec.plan.segments)
    scene.spec = replace(scene.spec, workload=Workload(source="a test", segments=loads))

    async def wait() -> CellUpdate:
        cell = await scene.start()
        while (update := await cell.next_update(0.01)).state is CellState.STARTING:
            pass
        await cell.stop()
        return update

    update = asyncio.run(wait())
    assert update.state is CellState.UNUSABLE and update.joined == ()
    assert update.reason.startswith("worker-0 cannot be built: ")
    assert "worker-0" in scene.group.killed


def test_a_worker_that_never_starts_is_started_anew(
    monkeypatch: pytest.MonkeyPatch, expected: Outcomes
) -> None:
    group = FakeGroup(start_fault=lambda worker: "hang" if worker == "worker-0" else None)
    scene = Scene(monkeypatch, group, workers=1)
    monkeypatch.setattr("ttsvar_ray.cluster.waiting.describe_cluster", lambda: "1 node")
    monkeypatch.setattr("ttsvar_ray.cluster.worker_pool.WORKER_START_SECONDS", 0.05)
    assert asyncio.run(scene.run()) == expected
    assert "worker-0" in group.killed


def test_an_error_nobody_expected_ends_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    group = FakeGroup(fault=lambda worker, n: KeyError("a bug"))
    scene = Scene(monkeypatch, group, workers=1)
    with pytest.raises(AssertionError, match="KeyError: 'a bug'"):
        asyncio.run(scene.run())
