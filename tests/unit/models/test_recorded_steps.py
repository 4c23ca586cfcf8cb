"""Recorded passes on a CPU, where a recording calls again: memory, its owners and keys are those of a GPU."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.recorders import PlainRecorder
from tests.support.tiny_infinity import tiny_model
from tests.support.var import load_case
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.models import recorded_steps
from ttsvar_ray.models.cached_model import CachedModel
from ttsvar_ray.models.protocol import Execution
from ttsvar_ray.models.recorded_steps import (
    Arena,
    CacheArena,
    RecordedSteps,
    cuda_recorder,
    recorded_capacity,
)
from ttsvar_ray.models.state import FreshTokens, KVCache, ScaleState
from ttsvar_ray.rng import bit_uniforms

TEXTS = {"infinity": ("a red circle", "two green rings and a blue square"), "var": (3, 5)}


class CountingRecorder(PlainRecorder):
    """Counts what is recorded and what is played."""

    def __init__(self) -> None:
        self.recorded = self.played = 0

    def record(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recorded += 1

        def play() -> Tensor:
            self.played += 1
            return call()

        return play


def make(family: str) -> Any:
    model = tiny_model(guidance=3.0) if family == "infinity" else load_case("shared_modulation").model
    model.execution = Execution(stops=(1, 4, model.num_scales - 1))
    return model


def run(model: CachedModel, state: ScaleState, names: Sequence[str], upto: int) -> ScaleState:
    for scale in range(state.scale_index, upto):
        height, width = model.scale_schedule[scale]
        count = height * width * model.bits_per_token
        uniforms = np.stack([bit_uniforms(7, name, scale, 0, count) for name in names])
        state = model.advance(state, uniforms)
    return state


def play(model: CachedModel, texts: Sequence[Any]) -> list[ScaleState]:
    """Run two prompts as an engine does: in turns, with survivors, a parent used twice, and a replay."""
    encoded = model.encode_text(texts) if isinstance(texts[0], str) else tuple(texts)
    states, done = [], []
    for prompt in range(2):
        state = run(model, model.start(encoded, [prompt] * 3), [f"{prompt}-{i}" for i in range(3)], 2)
        states.append(state)
    for prompt, state in enumerate(states):
        for picked in ([2, 0], [1, 1]):
            names = [f"{prompt}-{picked}-{i}" for i in range(2)]
            done.append(run(model, model.gather(state, picked), names, model.num_scales))
    both = model.concatenate([model.gather(states[0], [0, 1]), model.gather(states[1], [2])])
    done.append(run(model, both, ["x", "y", "z"], model.num_scales))
    again = model.start(encoded, [1, 1])
    done.append(model.replay(again, [np.asarray(scale) for scale in model.bits(done[2])]))
    return done + states


@pytest.mark.parametrize("family", ["infinity", "var"])
def test_played_passes_give_what_passes_give(family: str) -> None:
    plain, played = make(family), make(family)
    recorder = CountingRecorder()
    played.record_passes(recorder)
    expected = play(plain, TEXTS[family])
    for repeat in range(2):
        found = play(played, TEXTS[family])
        for mine, theirs in zip(found, expected, strict=True):
            for bits, known in zip(mine.bits, theirs.bits, strict=True):
                assert torch.equal(bits, known), repeat
            torch.testing.assert_close(mine.summed, theirs.summed)
            torch.testing.assert_close(mine.cache.tensor, theirs.cache.tensor, rtol=1e-4, atol=1e-5)
    passes = 2 * (2 * 2 + 5 * (played.num_scales - 2) + played.num_scales - 1)
    assert recorder.recorded > 0
    assert recorder.played > passes // 3, "most passes have been seen before"


def test_states_in_the_arena_are_values() -> None:
    model = make("infinity")
    model.record_passes(PlainRecorder())
    encoded = model.encode_text(TEXTS["infinity"])
    kept: list[tuple[ScaleState, Tensor]] = []
    for turn in range(4):
        state = model.start(encoded, [turn % 2] * 2)
        for scale in range(model.num_scales - 1):
            state = run(model, state, [f"{turn}-{i}" for i in range(2)], scale + 1)
            kept.append((state, state.cache.tensor.clone()))
    for state, copy in kept:
        assert torch.equal(state.cache.tensor, copy)
    again = run(model, kept[2][0], ["0-0", "0-1"], model.num_scales)
    straight = run(model, model.start(encoded, [0, 0]), ["0-0", "0-1"], model.num_scales)
    assert all(torch.equal(a, b) for a, b in zip(again.bits, straight.bits, strict=True))


def test_only_so_many_recordings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    played = {}
    for most in (192, 2):
        monkeypatch.setattr(recorded_steps, "MOST_RECORDED", most)
        model, recorder = make("infinity"), CountingRecorder()
        model.record_passes(recorder)
        for _ in range(2):
            play(model, TEXTS["infinity"])
        played[most] = recorder.played
    assert played[2] * 4 < played[192], "by the time most passes come again they are forgotten"


@pytest.mark.parametrize("family", ["infinity", "var"])
def test_memory_can_be_freed_at_any_time(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Arena]] = []
    construct = Arena.__init__

    def noted(arena: Arena) -> None:
        construct(arena)
        made.append(weakref.ref(arena))

    monkeypatch.setattr(Arena, "__init__", noted)
    model, recorder = make(family), CountingRecorder()
    model.record_passes(recorder)
    expected = play(model, TEXTS[family])
    found = play(model, TEXTS[family])
    recorded = recorder.recorded
    arenas = [each for each in made if each() is not None]
    assert len(arenas) == (2 if family == "infinity" else 1)
    model.free_memory()
    assert all(each() is None for each in arenas), "of caches, and of packed texts"
    again = play(model, TEXTS[family])
    for states in (found, again):
        for mine, theirs in zip(states, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine.bits, theirs.bits, strict=True))
            torch.testing.assert_close(mine.cache.tensor, theirs.cache.tensor)
    assert recorder.recorded > recorded, "they are recorded anew"


def test_where_a_recording_fails_passes_go_on_without(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        tried = 0

        def record(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
            self.tried += 1
            raise RuntimeError("operation not permitted when stream is capturing")

    expected = play(make("infinity"), TEXTS["infinity"])
    model, recorder = make("infinity"), Failing()
    model.record_passes(recorder, must_record=False)
    for _ in range(2):
        found = play(model, TEXTS["infinity"])
        for mine, theirs in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine.bits, theirs.bits, strict=True))
    assert recorder.tried == 1
    (said,) = (record.message for record in caplog.records)
    assert said.startswith("engine.cuda_graphs: a recording failed, passes go on without: operation not perm")
    model.record_passes(Failing())
    with pytest.raises(RuntimeError, match="capturing"):
        play(model, TEXTS["infinity"])
    assert model.recorded.played == 0


def test_large_passes_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_steps, "RECORDED_TOKENS", 0)
    model, recorder = make("infinity"), CountingRecorder()
    model.record_passes(recorder)
    for _ in range(3):
        play(model, TEXTS["infinity"])
    assert recorder.recorded == 0


def test_a_cache_has_room_for_the_recorded_passes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = (1, 4, 16, 64)
    monkeypatch.setattr(recorded_steps, "RECORDED_TOKENS", 32)
    found = [recorded_capacity(counts, 0, rows=rows, capacity=85) for rows in (1, 2, 3, 8, 9)]
    assert found == [21, 21, 5, 5, 1]
    assert recorded_capacity(counts, 1, rows=1, capacity=5) == 5, "the segment ends there"
    assert recorded_capacity(counts, 3, rows=1, capacity=None) is None
    # Whoever goes on past that room gets memory of its own, and the tokens with it.
    model = make("infinity")
    model.record_passes(PlainRecorder())
    expected = play(make("infinity"), TEXTS["infinity"])
    for _ in range(2):
        found_states = play(model, TEXTS["infinity"])
    for mine, theirs in zip(found_states, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.bits, theirs.bits, strict=True))


def fresh(rows: int, streams: int = 1) -> FreshTokens:
    return FreshTokens(
        tokens=2,
        layers=1,
        streams=streams,
        rows=rows,
        heads=1,
        width=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def grown(arena: CacheArena, cache: KVCache, rows: int, value: float) -> KVCache:
    cache = arena.moved(cache, fresh(rows), capacity=cache.num_tokens + 2)
    cache = cache.grown(fresh(rows), capacity=0)
    new = torch.full((1, rows, 1, 2, 4), value)
    cache.put(0, new, new)
    return cache


def test_a_cache_that_must_go_takes_its_tokens_along() -> None:
    arena = CacheArena()
    first = grown(arena, KVCache(), 3, 1.0)
    second = grown(arena, KVCache(), 3, 2.0)
    assert first.tensor.unique().tolist() == [1.0]
    assert second.tensor.unique().tolist() == [2.0]
    assert arena.generation == 1, "of one size, in one memory"
    back = grown(arena, first, 3, 3.0)
    assert back.tensor[0, 0, 0, 0, 0, :, 0].tolist() == [1.0, 1.0, 3.0, 3.0]
    assert second.tensor.unique().tolist() == [2.0]
    assert arena.generation == 2, "it has grown, and what was recorded is void"


def test_fewer_streams_go_on_alone() -> None:
    arena = CacheArena()
    both = arena.moved(KVCache(), fresh(1, 2), capacity=4).grown(fresh(1, 2), capacity=4)
    values = torch.tensor([1.0, 2.0])[:, None, None, None, None].expand(2, 1, 1, 2, 4)
    both.put(0, values, values)
    one = arena.moved(both, fresh(1, 1), capacity=4)
    assert one.tensor.shape[2] == 1
    assert one.tensor.unique().tolist() == [1.0]
    assert both.tensor.unique().tolist() == [1.0, 2.0]


def test_tensors_of_an_arena_do_not_overlap() -> None:
    arena, device = Arena(), torch.device("cpu")
    shapes = [((3,), torch.float32), ((2, 2), torch.bfloat16), ((5,), torch.int64)]
    tensors = arena.tensors(shapes, device)
    for index, tensor in enumerate(tensors):
        tensor.fill_(index)
    assert [tensor.unique().tolist() for tensor in tensors] == [[0], [1], [2]]
    assert [tensor.data_ptr() for tensor in arena.tensors(shapes, device)] == [t.data_ptr() for t in tensors]


def test_graphs_are_for_cuda_devices() -> None:
    assert cuda_recorder("auto", "cpu") is None
    assert cuda_recorder("never", "cuda") is None
    assert cuda_recorder("auto", "cuda") is not None
    with pytest.raises(ConfigurationError, match=r"engine\.cuda_graphs: 'always' needs a CUDA device"):
        make("infinity").set_execution(Execution(cuda_graphs="always"))


class PretendedGraph:
    def __init__(self, number: int, asked: list[str]) -> None:
        self.memory_of, self.asked = number, asked

    def pool(self) -> int:
        return self.memory_of

    def capture_begin(self, pool: int | None = None, *, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local", "other threads go on"
        self.memory_of = self.memory_of if pool is None else pool
        self.asked.append("begins")

    def capture_end(self) -> None:
        self.asked.append("ends")

    def replay(self) -> None:
        self.asked.append("plays")


class PretendedCuda:
    """What a recorder asks of `torch.cuda`, written down; nothing is computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.asked, self.streams, self.graphs = 10**11, [], [], []
        self.current: Any = "the current stream"
        for name in ("Stream", "CUDAGraph", "stream", "current_stream", "synchronize"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (self.free, 2 * self.free))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: self.asked.append("emptied"))

    def Stream(self) -> Any:  # noqa: N802 - torch's name
        self.streams.append(SimpleNamespace(wait_stream=lambda other: self.asked.append("waits")))
        return self.streams[-1]

    def CUDAGraph(self) -> Any:  # noqa: N802 - torch's name
        graph = PretendedGraph(len(self.graphs), self.asked)
        self.graphs.append(weakref.ref(graph))
        return graph

    @contextlib.contextmanager
    def stream(self, chosen: Any) -> Iterator[None]:
        before, self.current = self.current, chosen
        yield
        self.current = before

    def current_stream(self) -> Any:
        return self.current

    def synchronize(self) -> None:
        self.asked.append("waits")


def test_graphs_are_recorded_on_one_stream_and_share_memory_while_any_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = PretendedCuda(monkeypatch)
    recorder = cuda_recorder("auto", "cuda")
    assert recorder is not None
    ran_on: list[Any] = []

    def call() -> Tensor:
        ran_on.append(cuda.current)
        cuda.asked.append("runs")
        return torch.ones(1)

    first, second = recorder.record(call), recorder.record(call)
    assert cuda.asked[:6] == ["waits", "runs", "waits", "begins", "runs", "ends"]
    assert "emptied" not in cuda.asked, "kept memory would have to be taken anew by whoever runs next"
    assert len(cuda.streams) == 1 and all(stream is cuda.streams[0] for stream in ran_on)
    assert [graph().memory_of for graph in cuda.graphs] == [0, 0]
    assert float(first()) == 1 and cuda.asked[-1] == "plays"
    del first
    assert cuda.graphs[0]() is None
    third = recorder.record(call)
    assert cuda.graphs[2]().memory_of == 0, "the second one keeps it"
    del second, third
    cuda.free = 10**9
    cuda.asked.clear()
    fourth = recorder.record(call)
    assert cuda.graphs[3]().memory_of == 3, "memory of graphs that are gone is gone"
    assert cuda.asked.count("emptied") == 1, "where a GPU has little left"
    assert float(fourth()) == 1


def test_a_recording_that_fails_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = PretendedCuda(monkeypatch)
    recorder = cuda_recorder("auto", "cuda")
    assert recorder is not None
    calls = iter((torch.ones(1), None))

    def call() -> Tensor:
        result = next(calls)
        if result is None:
            raise torch.OutOfMemoryError("no room")
        return result

    with pytest.raises(torch.OutOfMemoryError):
        recorder.record(call)
    assert cuda.asked[-2:] == ["begins", "ends"]


def test_nothing_is_recorded_that_was_seen_once() -> None:
    recorder = CountingRecorder()
    steps = RecordedSteps(recorder)

    def call(inputs: tuple[Tensor, ...], extend: Any) -> Tensor:
        new = inputs[0].view(1, 1, 1, 2, 4)
        return extend(0)(new, new).keys.sum()

    results = []
    for value in (1.0, 2.0, 3.0):
        result, cache = steps.run("sum", call, [torch.full((2, 4), value)], KVCache(), fresh(1), capacity=2)
        results.append((float(result), recorder.recorded, recorder.played, cache.num_tokens))
    assert results == [(8.0, 0, 0, 2), (16.0, 1, 1, 2), (24.0, 1, 2, 2)]


def test_a_pass_that_was_seen_is_recorded_the_second_time_though_memory_has_grown_since() -> None:
    recorder = CountingRecorder()
    steps = RecordedSteps(recorder)

    def call(inputs: tuple[Tensor, ...], extend: Any) -> Tensor:
        new = inputs[0].view(1, -1, 1, 2, 4)
        return extend(0)(new, new).keys.sum()

    counted = []
    for rows, value in ((1, 1.0), (3, 2.0), (1, 3.0), (3, 4.0), (5, 5.0), (1, 6.0), (1, 7.0)):
        given = torch.full((rows * 2, 4), value)
        result, _ = steps.run("sum", call, [given], KVCache(), fresh(rows), capacity=2)
        assert float(result) == rows * 8 * value
        counted.append((recorder.recorded, recorder.played))
    assert counted == [(0, 0), (0, 0), (1, 1), (2, 2), (2, 2), (3, 3), (3, 4)]


def test_long_texts_of_many_rows_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, recorder = make("infinity"), CountingRecorder()
    model.execution = Execution(fixed_shapes=True, stops=(1, 4, model.num_scales - 1))
    model.record_passes(recorder)
    expected = play(model, TEXTS["infinity"])
    play(model, TEXTS["infinity"])
    assert recorder.played > 0
    monkeypatch.setattr("ttsvar_ray.models.infinity.model.PACKED_BYTES", 0)
    before = recorder.played
    for mine, theirs in zip(play(model, TEXTS["infinity"]), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.bits, theirs.bits, strict=True))
    assert recorder.played == before
