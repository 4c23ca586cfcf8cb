"""The engine's promises: results do not depend on packing, placement, replay or neighbours' failures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.plans import tts_var_plan
from tests.support.prompts import make_prompts
from tests.support.tiny_model import TINY_SCHEDULE, TinyExtractor, TinyModel, TinyReward
from ttsvar_ray.coordination.messages import FailureKind, SegmentReport, ShardFailure, ShardTask
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.results import PackedBits
from ttsvar_ray.types import WORST_REWARD, Float32Array, Int64Array, Prompt


def make_engine(
    rows: int = 16, *, model: TinyModel | None = None, reward: TinyReward | None = None, **settings: str
) -> Engine:
    return Engine(
        model=model or TinyModel(),
        reward=reward or TinyReward(),
        extractor=TinyExtractor(),
        plan=tts_var_plan(),
        run_seed=7,
        settings=EngineSettings(micro_batch_rows=rows, **settings),  # type: ignore[arg-type]
    )


def reports_of(results: Sequence[SegmentReport | ShardFailure]) -> list[SegmentReport]:
    for result in results:
        assert isinstance(result, SegmentReport), result
    return [result for result in results if isinstance(result, SegmentReport)]


def parents_for(segment_index: int) -> tuple[int, ...]:
    """Return a fixed choice of survivors with repetition, as a coordinator might make it."""
    plan = tts_var_plan()
    before = plan.segments[segment_index - 1].population
    survivors = plan.segments[segment_index].population
    return tuple((3 * slot * slot + 1) % before for slot in range(survivors))


def run_whole(
    prompts: Sequence[Prompt],
    engines: Sequence[Engine],
    *,
    move: bool = False,
    send_bits: bool = False,
    reverse: bool = False,
) -> dict[str, list[SegmentReport]]:
    """Run every segment with shards dealt over the engines; `move` deals each segment differently."""
    plan = tts_var_plan()
    history: dict[str, list[PackedBits]] = {p.key: [] for p in prompts}
    merged: dict[str, list[SegmentReport]] = {p.key: [] for p in prompts}
    for segment in plan.segments:
        parts: dict[str, list[SegmentReport]] = {p.key: [] for p in prompts}
        before = {key: list(bits) for key, bits in history.items()}
        for number, engine in enumerate(engines):
            tasks = []
            for prompt in prompts:
                turn = number + (segment.index if move else 0)
                slots = tuple(s for s in range(segment.population) if s % len(engines) == turn % len(engines))
                if not slots:
                    continue
                ancestors = parents_for(segment.index) if segment.index else ()
                parents = tuple(ancestors[s] for s in slots) if segment.index else ()
                sent = {p: before[prompt.key][p] for p in parents} if send_bits or move else {}
                tasks.append(
                    ShardTask(
                        prompt=prompt,
                        attempt=0,
                        segment_index=segment.index,
                        slots=slots,
                        parent_slots=parents,
                        parent_bits=sent,
                    )
                )
            if reverse:
                tasks.reverse()
            for report in reports_of(engine.run_segment(tasks)):
                parts[report.prompt_key].append(report)
        for prompt in prompts:
            whole = merge(parts[prompt.key])
            merged[prompt.key].append(whole)
            ancestors = parents_for(segment.index) if segment.index else ()
            prefixes = (
                [before[prompt.key][p] for p in ancestors] if segment.index else [()] * len(whole.slots)
            )
            history[prompt.key] = [(*a, *b) for a, b in zip(prefixes, whole.bits, strict=True)]
    return merged


def merge(reports: Sequence[SegmentReport]) -> SegmentReport:
    """Return one report in slot order, without what may differ (times, counters)."""
    order = sorted((slot, r, i) for r, report in enumerate(reports) for i, slot in enumerate(report.slots))
    clusters = reports[0].features is not None
    return replace(
        reports[0],
        slots=tuple(slot for slot, _, _ in order),
        features=np.stack([reports[r].features[i] for _, r, i in order]) if clusters else None,  # type: ignore[index]
        rewards=np.stack([reports[r].rewards[i] for _, r, i in order]),
        bits=tuple(reports[r].bits[i] for _, r, i in order),
        images=tuple(reports[r].images[i] for _, r, i in order) if reports[0].images else (),
        seconds=0.0,
        counters={},
    )


def assert_same(a: dict[str, list[SegmentReport]], b: dict[str, list[SegmentReport]]) -> None:
    assert a.keys() == b.keys()
    for key, reports in a.items():
        for left, right in zip(reports, b[key], strict=True):
            assert left.slots == right.slots
            assert left.bits == right.bits
            assert left.images == right.images
            np.testing.assert_array_equal(left.rewards, right.rewards)
            if left.features is None or right.features is None:
                assert left.features is right.features
            else:
                np.testing.assert_array_equal(left.features, right.features)


@pytest.fixture(scope="module")
def expected() -> dict[str, list[SegmentReport]]:
    return run_whole(make_prompts(3), [make_engine(64)])


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 24])
def test_the_micro_batch_does_not_change_results(expected: dict[str, list[SegmentReport]], rows: int) -> None:
    assert_same(run_whole(make_prompts(3), [make_engine(rows)]), expected)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("move", [False, True])
def test_the_spread_and_moving_do_not_change_results(
    expected: dict[str, list[SegmentReport]], workers: int, move: bool
) -> None:
    engines = [make_engine(5) for _ in range(workers)]
    assert_same(run_whole(make_prompts(3), engines, move=move, send_bits=True), expected)


def test_the_order_of_prompts_does_not_change_results(expected: dict[str, list[SegmentReport]]) -> None:
    assert_same(run_whole(make_prompts(3), [make_engine(7)], reverse=True), expected)


def test_another_seed_changes_results(expected: dict[str, list[SegmentReport]]) -> None:
    engine = Engine(
        model=TinyModel(),
        reward=TinyReward(),
        extractor=TinyExtractor(),
        plan=tts_var_plan(),
        run_seed=8,
        settings=EngineSettings(),
    )
    other = run_whole(make_prompts(1), [engine])
    assert other["p0000#0"][0].bits != expected["p0000#0"][0].bits


def test_reports_carry_what_the_segment_is_for(expected: dict[str, list[SegmentReport]]) -> None:
    first, second, third, fourth, last = expected["p0000#0"]
    assert [len(r.slots) for r in (first, second, third, fourth, last)] == [8, 6, 4, 2, 1]
    assert first.features is not None and first.features.shape == (8, 4) and first.rewards.shape == (8, 0)
    assert second.features is not None and third.features is None
    assert third.rewards.shape == (4, 1) and last.rewards.shape == (1, 1)
    assert [len(r.bits[0]) for r in (first, second, third, fourth, last)] == [3, 3, 1, 3, 3]
    image = last.images[0]
    pixels = np.asarray(Image.open(io.BytesIO(image.payload)))
    assert (image.width, image.height, image.image_format) == (32, 32, "png")
    assert pixels.shape == (32, 32, 3)
    reward = TinyReward().score(pixels[None], [make_prompts(1)[0].text])
    np.testing.assert_array_equal(reward, last.rewards[0])


@pytest.mark.parametrize("shape", [(1, 4), (8,), (9, 4)])
def test_features_that_are_not_one_vector_an_image_fail_the_prompt(shape: tuple[int, ...]) -> None:
    class Odd(TinyExtractor):
        def extract(self, images: np.ndarray) -> np.ndarray:
            return np.zeros(shape, dtype=np.float32)

    engine = Engine(
        model=TinyModel(),
        reward=TinyReward(),
        extractor=Odd(),
        plan=tts_var_plan(),
        run_seed=7,
        settings=EngineSettings(),
    )
    (failure,) = engine.run_segment([shard(make_prompts(1)[0], 0, range(8))])
    assert isinstance(failure, ShardFailure)
    assert "features: expected a vector for each of 8 images, got shape" in failure.error


def test_each_missing_parent_is_replayed_once_however_often_it_was_chosen() -> None:
    prompt = make_prompts(1)[0]
    source = make_engine()
    bits = reports_of(source.run_segment([shard(prompt, 0, range(8))]))[0].bits
    model = TinyModel()
    target = make_engine(2, model=model)
    parents = (5, 5, 2, 5, 2, 5)
    task = shard(prompt, 1, range(6), parents, {5: bits[5], 2: bits[2]})
    (report,) = reports_of(target.run_segment([task]))
    assert sum(rows for name, rows in model.calls if name == "replay") == 2
    assert report.counters["parents_replayed"] == 2
    held = reports_of(source.run_segment([shard(prompt, 1, range(6), parents)]))[0]
    assert held.bits == report.bits


def test_a_text_is_encoded_once_for_each_prompt() -> None:
    model = TinyModel()
    run_whole(make_prompts(2), [make_engine(3, model=model)])
    assert [rows for name, rows in model.calls if name == "encode_text"] == [1, 1]


def test_only_what_is_looked_at_is_decoded() -> None:
    model = TinyModel()
    run_whole(make_prompts(1), [make_engine(64, model=model)])
    assert [rows for name, rows in model.calls if name == "decode"] == [8, 6, 4, 2, 1]


def test_unknown_state_is_stale_and_costs_no_neighbour() -> None:
    known, unknown = make_prompts(2)
    engine = make_engine()
    engine.run_segment([shard(known, 0, range(8))])
    good, stale = engine.run_segment([shard(p, 1, range(6), range(6)) for p in (known, unknown)])
    assert isinstance(good, SegmentReport)
    assert isinstance(stale, ShardFailure) and stale.kind is FailureKind.STALE
    assert unknown.key in stale.error


def test_released_state_is_stale() -> None:
    prompt = make_prompts(1)[0]
    engine = make_engine()
    engine.run_segment([shard(prompt, 0, range(8))])
    assert (engine.held_prompts, engine.held_trajectories) == (1, 8)
    engine.release(prompt.key, 0)
    engine.release(prompt.key, 0)
    assert (engine.held_prompts, engine.held_trajectories) == (0, 0)
    (result,) = engine.run_segment([shard(prompt, 1, (0,), (0,))])
    assert isinstance(result, ShardFailure) and result.kind is FailureKind.STALE


def test_old_segments_are_forgotten_and_finals_are_not_held() -> None:
    engine = make_engine()
    prompt = make_prompts(1)[0]
    held = []
    for segment in tts_var_plan().segments:
        parents = parents_for(segment.index) if segment.index else ()
        engine.run_segment([shard(prompt, segment.index, range(segment.population), parents)])
        held.append(engine.held_trajectories)
    assert held == [8, 14, 10, 6, 2]


def test_a_failing_prompt_costs_its_own_shards_only(expected: dict[str, list[SegmentReport]]) -> None:
    prompts = make_prompts(3)
    bad = replace(prompts[1], text="boom")
    engine = make_engine(64, model=TinyModel(fail_on="boom"))
    results = engine.run_segment([shard(p, 0, range(8)) for p in (prompts[0], bad, prompts[2])])
    failure = results[1]
    assert isinstance(failure, ShardFailure) and failure.kind is FailureKind.PROMPT
    assert "ValueError: text cannot be encoded: 'boom'" in failure.error
    for result, prompt in ((results[0], prompts[0]), (results[2], prompts[2])):
        assert isinstance(result, SegmentReport)
        assert result.bits == expected[prompt.key][0].bits


def test_an_interrupt_that_code_raises_costs_its_prompt_and_one_of_the_keyboard_ends_the_call() -> None:
    class Interrupting(TinyModel):
        def encode_text(self, texts: Sequence[str]) -> Int64Array:
            raise KeyboardInterrupt("no more of this")

    engine, tasks = make_engine(64, model=Interrupting()), [shard(make_prompts(1)[0], 0, range(8))]
    with ThreadPoolExecutor(1) as worker:
        (failure,) = worker.submit(engine.run_segment, tasks).result()
    assert isinstance(failure, ShardFailure) and failure.kind is FailureKind.PROMPT
    assert failure.error.startswith("KeyboardInterrupt: no more of this [test_engine.py, line ")
    with pytest.raises(KeyboardInterrupt):
        engine.run_segment(tasks)


def test_out_of_memory_has_the_model_let_go_of_what_it_can_do_without() -> None:
    class Keeping(TinyModel):
        freed = 0

        def free_memory(self) -> None:
            self.freed += 1

    model = Keeping(memory_rows=5)
    reports_of(make_engine(16, model=model).run_segment([shard(make_prompts(1)[0], 0, range(8))]))
    assert model.freed == 1


def test_out_of_memory_halves_the_micro_batch(expected: dict[str, list[SegmentReport]]) -> None:
    model = TinyModel(memory_rows=5)
    engine = make_engine(16, model=model)
    results = reports_of(engine.run_segment([shard(p, 0, range(8)) for p in make_prompts(2)]))
    assert [r.bits for r in results] == [expected[p.key][0].bits for p in make_prompts(2)]
    assert results[0].counters["micro_batches_halved"] == 2
    model.calls.clear()
    engine.run_segment([shard(make_prompts(3)[2], 0, range(8))])
    assert max(rows for name, rows in model.calls if name == "advance") <= 4, "the lower limit is kept"


@pytest.mark.parametrize(
    "told",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["torch", "driver", "cublas", "cudnn", "triton", "host"],
)
def test_memory_that_libraries_lack_halves_the_micro_batch(
    told: RuntimeError, expected: dict[str, list[SegmentReport]]
) -> None:
    class Lacking(TinyModel):
        def advance(self, state: Any, uniforms: Float32Array) -> Any:
            if len(uniforms) > 5:
                raise told
            return super().advance(state, uniforms)

    prompt = make_prompts(1)[0]
    (report,) = reports_of(make_engine(16, model=Lacking()).run_segment([shard(prompt, 0, range(8))]))
    assert report.bits == expected[prompt.key][0].bits
    assert report.counters["micro_batches_halved"] == 1


def test_a_lost_device_ends_the_worker() -> None:
    class Lost(TinyModel):
        def advance(self, state: Any, uniforms: Float32Array) -> Any:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(torch.AcceleratorError):
        make_engine(16, model=Lost()).run_segment([shard(make_prompts(1)[0], 0, range(8))])


def test_out_of_memory_with_a_single_row_is_a_memory_failure() -> None:
    engine = make_engine(16, model=TinyModel(memory_rows=0))
    (result,) = engine.run_segment([shard(make_prompts(1)[0], 0, range(8))])
    assert isinstance(result, ShardFailure) and result.kind is FailureKind.MEMORY


@pytest.mark.parametrize("bad_value", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_that_is_not_finite(bad_value: float) -> None:
    prompts = make_prompts(2)
    bad = replace(prompts[1], text="odd")
    reward = TinyReward(bad_on="odd", bad_value=bad_value)

    def third_segment(policy: str) -> list[SegmentReport | ShardFailure]:
        engine = make_engine(reward=reward, nonfinite=policy)
        for index in range(2):
            population = tts_var_plan().segments[index].population
            parents = tuple(range(population)) if index else ()
            engine.run_segment([shard(p, index, range(population), parents) for p in (prompts[0], bad)])
        return engine.run_segment([shard(p, 2, range(4), range(4)) for p in (prompts[0], bad)])

    good, failure = third_segment("error")
    assert isinstance(good, SegmentReport) and isinstance(failure, ShardFailure)
    assert failure.kind is FailureKind.PROMPT and "reward.nonfinite" in failure.error
    _, counted = third_segment("worst")
    assert isinstance(counted, SegmentReport)
    np.testing.assert_array_equal(counted.rewards, np.full((4, 1), WORST_REWARD, dtype=np.float32))
    assert counted.counters["rewards_not_finite"] == 4


def test_damaged_bits_fail_the_prompt_with_the_scale() -> None:
    prompt = make_prompts(1)[0]
    bits = reports_of(make_engine().run_segment([shard(prompt, 0, range(8))]))[0].bits
    damaged = (bits[0][0], bits[0][1], b"")
    (result,) = make_engine().run_segment([shard(prompt, 1, (0,), (0,), {0: damaged})])
    assert isinstance(result, ShardFailure) and "packed bits, scale 2" in result.error


def test_a_plan_for_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="compile the plan for this model"):
        make_engine(model=TinyModel(scale_schedule=TINY_SCHEDULE[:-1]))


def shard(
    prompt: Prompt,
    segment_index: int,
    slots: Sequence[int],
    parents: Sequence[int] = (),
    parent_bits: dict[int, PackedBits] | None = None,
) -> ShardTask:
    return ShardTask(
        prompt=prompt,
        attempt=0,
        segment_index=segment_index,
        slots=tuple(slots),
        parent_slots=tuple(parents),
        parent_bits=parent_bits or {},
    )
