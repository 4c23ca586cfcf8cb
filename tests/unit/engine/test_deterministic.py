"""Deterministic passes: on a device that chooses kernels by shape, bytes depend on nobody's neighbours.

Such a device is played by a model whose every scale, replay and image depends on the number of rows in the
pass. On a CPU the built-in model shows that filling up and taking out loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.support.plans import tts_var_plan
from tests.support.prompts import make_prompts
from tests.support.tiny_model import TinyExtractor, TinyModel, TinyReward, TinyState
from ttsvar_ray.cli.plan_report import job_report
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.load import load_config
from ttsvar_ray.coordination.coordinator import Coordinator
from ttsvar_ray.coordination.messages import FailureKind, Refuse, ShardFailure, ShardTask, WorkerJoined
from ttsvar_ray.coordination.settings import CoordinatorSettings, SegmentLoad, Spread, Workload
from ttsvar_ray.costs.profile import load_profile
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.memory_plan import memory_plan
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.job.simulation import simulated_job
from ttsvar_ray.job.workload import build_workload
from ttsvar_ray.models.protocol import PACKED_BYTES
from ttsvar_ray.results import PromptResult
from ttsvar_ray.simulation.run import simulate
from ttsvar_ray.types import Float32Array, UInt8Array

PLAN = tts_var_plan()
PASS_ROWS = (9, 9, 6, 4, 3)


class ShapedModel(TinyModel):
    """Rounds otherwise for every number of rows; `passes` has what it was asked: (scale, rows)."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[tuple[int, int]] = []
        self.replayed = 0

    def _round(self, state: TinyState) -> TinyState:
        rows = len(state.cache)
        self.passes.append((len(state.bits) - 1, rows))
        return replace(state, cache=state.cache + rows * rows)

    def advance(self, state: TinyState, uniforms: Float32Array) -> TinyState:
        return self._round(super().advance(state, uniforms))

    def replay(self, state: TinyState, bits: Sequence[np.ndarray]) -> TinyState:
        for scale in bits:
            state = self._round(super().replay(state, [scale]))
        self.replayed += 1
        return state

    def decode(self, state: TinyState, *, size: str = "full") -> UInt8Array:
        self.passes.append((len(state.bits) - 1, len(state.cache)))
        return super().decode(state, size=size) ^ np.uint8(len(state.cache))


def search(
    *,
    rows: int | tuple[int, ...],
    deterministic: bool,
    engines: int = 1,
    spread: Spread = 1,
    prompts: int = 5,
) -> tuple[dict[str, object], list[ShapedModel]]:
    """Return what came out, and the models that made it."""
    models = [ShapedModel() for _ in range(engines)]
    workers = [
        Engine(
            model=model,
            reward=TinyReward(),
            extractor=TinyExtractor(),
            plan=PLAN,
            run_seed=3,
            settings=EngineSettings(micro_batch_rows=rows, deterministic=deterministic),
        )
        for model in models
    ]
    settings = CoordinatorSettings(spread=spread, keep="all")
    content: dict[str, object] = {}
    for outcome in run_local(
        make_prompts(prompts), plan=PLAN, engines=workers, run_seed=3, settings=settings
    ):
        assert isinstance(outcome, PromptResult), outcome
        content[outcome.prompt.key] = (outcome.images, [record.ancestor_index for record in outcome.trace])
    return content, models


def rows_of_scales(pass_rows: tuple[int, ...]) -> dict[int, int]:
    return {
        scale: pass_rows[segment.index]
        for segment in PLAN.segments
        for scale in range(segment.first_scale, segment.last_scale + 1)
    }


def test_without_it_such_a_device_gives_other_bytes() -> None:
    one, _ = search(rows=16, deterministic=False)
    other, _ = search(rows=5, deterministic=False)
    assert one.keys() == other.keys()
    assert one != other


@pytest.mark.parametrize(
    ("engines", "spread", "prompts"), [(1, 1, 1), (2, 1, 5), (3, 3, 5), (2, 2, 3), (4, "auto", 2)]
)
def test_with_it_bytes_depend_on_nothing_else(engines: int, spread: Spread, prompts: int) -> None:
    expected, _ = search(rows=PASS_ROWS, deterministic=True, prompts=5)
    found, models = search(
        rows=PASS_ROWS, deterministic=True, engines=engines, spread=spread, prompts=prompts
    )
    assert found == {key: expected[key] for key in found}
    assert len(found) == prompts
    wanted = rows_of_scales(PASS_ROWS)
    passes = {shape for model in models for shape in model.passes}
    assert passes == set(wanted.items()), "every pass of a scale has the same rows"
    assert engines == 1 or spread == 1 or sum(model.replayed for model in models) > 0


def test_the_numbers_of_rows_are_part_of_what_is_generated() -> None:
    nine, _ = search(rows=PASS_ROWS, deterministic=True)
    eight, _ = search(rows=(8, 8, 6, 4, 3), deterministic=True)
    assert nine != eight

    def content(*settings: str) -> dict[str, object]:
        return load_config(None, settings, needs_files=False).content()

    assert content("engine.micro_batch_rows=3") == content("engine.micro_batch_rows=4")
    fixed = "engine.deterministic=true"
    assert content(fixed, "engine.micro_batch_rows=3") != content(fixed, "engine.micro_batch_rows=4")
    assert content(fixed) != content()


def test_memory_that_is_full_fails_the_shard_and_changes_no_shape() -> None:
    model = TinyModel(memory_rows=7)
    engine = Engine(
        model=model,
        reward=TinyReward(),
        extractor=TinyExtractor(),
        plan=PLAN,
        run_seed=3,
        settings=EngineSettings(micro_batch_rows=8, deterministic=True),
    )
    (prompt,) = make_prompts(1)
    (failure,) = engine.run_segment([ShardTask(prompt=prompt, attempt=0, segment_index=0, slots=(0, 1))])
    assert isinstance(failure, ShardFailure)
    assert failure.kind is FailureKind.MEMORY
    assert "a pass of 8 rows" in failure.error and "lower engine.micro_batch_rows" in failure.error
    assert {rows for name, rows in model.calls if name == "advance"} == {8}


def shapes_job(*settings: str) -> JobConfig:
    return load_config(
        None,
        ["model.device=cpu", "strategy.plan=published", "output.keep=all", "seed=11", *settings],
        needs_files=False,
    )


def built_in(config: JobConfig, engines: int) -> dict[str, object]:
    job = resolve(config)
    outcomes = run_local(
        make_prompts(2),
        plan=job.plan,
        engines=[build_engine(job) for _ in range(engines)],
        run_seed=config.seed,
        settings=CoordinatorSettings(spread=engines, keep="all"),
    )
    return {outcome.prompt.key: outcome.images for outcome in outcomes if isinstance(outcome, PromptResult)}


def test_filling_up_loses_nothing_on_the_built_in_model() -> None:
    plain = built_in(shapes_job(), 1)
    rows = "engine.micro_batch_rows=[7, 6, 3, 3, 2]"
    filled = built_in(shapes_job("engine.deterministic=true", rows), 2)
    assert len(plain) == 2
    assert filled == plain


def two_b(*settings: str) -> JobConfig:
    return load_config(None, ["model.name=infinity-2b", *settings], needs_files=False)


FIXED = ("engine.deterministic=true", "engine.micro_batch_rows=[32, 32, 16, 8, 4]")


def test_costs_are_those_of_full_passes() -> None:
    config, free = two_b(*FIXED), two_b("engine.micro_batch_rows=[32, 32, 16, 8, 4]")
    job, device = resolve(config), load_profile("h200")
    fixed, loose = build_workload(job, device), build_workload(resolve(free), device)
    for index, rows in enumerate((32, 32, 16, 8, 4)):
        assert fixed.segments[index].pass_rows == rows
        full = loose.seconds(index, rows)
        assert fixed.seconds(index, rows) == pytest.approx(full)
        assert fixed.seconds(index, 1) == pytest.approx(full), "one trajectory costs a whole pass"
        assert fixed.seconds(index, rows + 1) == pytest.approx(2 * full)
    assert fixed.seconds(3, 8, 8) == fixed.seconds(3, 8, 1), "parents are rebuilt in one pass"
    assert fixed.seconds(3, 8, 1) > loose.seconds(3, 8, 1)

    plan = job.plan
    networks = job_networks(config, job.description, plan, on_gpu=True)
    sizes = {"selector_decode": "full"}
    padded = memory_plan(networks, plan, pass_rows=(32, 32, 16, 8, 4), **sizes)
    usual = memory_plan(networks, plan, **sizes)
    last = fixed.segments[-1]
    assert padded.least_bytes - padded.weight_bytes >= 4 * last.running_bytes
    assert padded.prompts_under_way(141e9) < usual.prompts_under_way(141e9)


def test_a_plan_says_how_large_its_passes_are() -> None:
    report = job_report(resolve(two_b(*FIXED)))
    assert "deterministic, passes of 32, 32, 16, 8, 4 rows by segment" in " ".join(
        " ".join(report.lines()).split()
    )


def test_a_worker_too_small_for_its_passes_is_told_so() -> None:
    loads = [
        SegmentLoad(
            tokens=1, held_bytes=10, running_bytes=15, batch_seconds=0.0, row_seconds=1.0, pass_rows=4
        )
        for _ in PLAN.segments
    ]
    workload = Workload(segments=tuple(loads), source="of the test")
    coordinator = Coordinator(plan=PLAN, run_seed=0, settings=CoordinatorSettings(), workload=workload)
    (refusal,) = coordinator.handle(WorkerJoined(worker_id="small", rows=4, memory_bytes=79))
    assert isinstance(refusal, Refuse)
    assert "passes of 4, 4, 4, 4, 4 rows, which engine.deterministic keeps full" in refusal.reason
    assert not any(
        isinstance(action, Refuse)
        for action in coordinator.handle(WorkerJoined(worker_id="large", rows=4, memory_bytes=80))
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["engine.micro_batch_rows=[4, 4]"], "engine.micro_batch_rows: expected one number, or one for each"),
        (
            ["engine.deterministic=true", "engine.micro_batch_rows=[4, 4, 8, 2, 2]"],
            "engine.micro_batch_rows: expected numbers that never rise",
        ),
        (
            ["engine.deterministic=true", "cluster.batch_tokens=100"],
            "cluster.batch_tokens: expected none with engine.deterministic",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings: list[str], said: str) -> None:
    config = shapes_job(*settings)
    with pytest.raises(ConfigurationError, match=said):
        resolve(config, needs_parts=True)


def test_rising_numbers_are_fine_where_nothing_is_filled_up() -> None:
    config = shapes_job("engine.micro_batch_rows=[4, 4, 8, 2, 2]")
    resolve(config, needs_parts=True)


def test_a_simulation_pays_for_passes_that_are_not_full() -> None:
    fixed, loose = simulated_job(two_b(*FIXED)), simulated_job(two_b())
    assert [load.pass_rows for load in fixed.workload.segments] == [32, 32, 16, 8, 4]
    assert [load.pass_rows for load in loose.workload.segments] == [0] * 5
    given = [simulated.settings.memory_bytes for simulated in (loose, fixed)]
    assert given[0] is not None
    assert given[1] is not None
    assert 0 <= given[0] - given[1] <= PACKED_BYTES, "but for texts, a pass is reserved by the coordinator"
    rates = [
        simulate(
            plan=job.plan,
            workload=job.workload,
            settings=replace(job.settings, gpus=2, prompts=60, start_seconds=0),
            coordinator=job.coordinator,
        ).prompts_per_second
        for job in (fixed, loose)
    ]
    assert 0.3 * rates[1] < rates[0] < rates[1]
