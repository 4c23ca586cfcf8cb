from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.recorders import PlainRecorder
from tests.support.tiny_infinity import REPEATED_SCHEDULE, TEXT_LENGTH, text_parts, tiny_model
from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.text import T5TextEncoder
from ttsvar_ray.models.protocol import Execution
from ttsvar_ray.models.state import KVCache, ScaleState
from ttsvar_ray.rng import bit_uniforms

PROMPTS = ["a red circle", "two green rings and a blue square", "a square"]


@pytest.fixture(scope="module")
def model() -> InfinityModel:
    return tiny_model()


def uniforms(model: InfinityModel, scale: int, names: Sequence[str]) -> np.ndarray:
    """One stream per trajectory name, whatever the batch."""
    height, width = model.scale_schedule[scale]
    count = height * width * model.bits_per_token
    return np.stack([bit_uniforms(7, name, scale, 0, count) for name in names])


def run(model: InfinityModel, state: ScaleState, names: Sequence[str], upto: int | None = None) -> ScaleState:
    for scale in range(state.scale_index, model.num_scales if upto is None else upto):
        state = model.advance(state, uniforms(model, scale, names))
    return state


def start(model: InfinityModel, prompts: Sequence[int]) -> ScaleState:
    return model.start(model.encode_text(PROMPTS), prompts)


def same_bytes(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return all(same_bytes(x, y) for x, y in zip(a, b, strict=True))


def contents(state: ScaleState) -> list[torch.Tensor]:
    caches = [t for layer in state.cache.layers for t in (layer.keys, layer.values)]
    return [state.summed, *state.bits, *caches]


@pytest.mark.parametrize(("guidance", "worker_threads"), [(3.0, 1), (1.0, 1), (3.0, 2), (1.0, 2)])
def test_a_row_is_the_same_bytes_in_any_batch(guidance: float, worker_threads: int) -> None:
    """The guarantee that makes micro-batches, spread and retries invisible."""
    threads = torch.get_num_threads()
    torch.set_num_threads(worker_threads)
    try:
        model = tiny_model(guidance=guidance)
        prompts = [0, 1, 2, 0, 1, 0, 2, 2]
        names = [f"trajectory-{i}" for i in range(8)]
        whole = run(model, start(model, prompts), names)
        images = model.decode(whole)
        assert len({image.tobytes() for image in images}) == 8, "rows must differ for this test to tell"
        for rows in ([0], [5], [1, 2], [7, 3, 0], [6, 0, 1, 2, 3, 4, 5]):
            texts = model.encode_text([PROMPTS[prompts[row]] for row in rows])
            state = model.start(texts, range(len(rows)))
            state = run(model, state, [names[row] for row in rows])
            expected = whole.gather(rows)
            assert same_bytes(contents(state), contents(expected)), rows
            assert np.array_equal(model.decode(state), images[rows]), rows
    finally:
        torch.set_num_threads(threads)


def test_a_row_does_not_depend_on_how_long_its_neighbours_texts_are() -> None:
    model = tiny_model(text_length=64)
    texts = ["a ring", "red " * 20, "green " * 100, "a blue circle"]
    encoded = model.encode_text(texts)
    assert [text.text_mask.shape[1] for text in encoded] == [16, 32, 64, 16]
    names = ["w", "x", "y", "z", "v"]
    whole = run(model, model.start(encoded, [0, 1, 2, 3, 1]), names)
    assert len({row.tobytes() for row in model.bits(whole)[-1]}) == 5
    for rows, part in (([0], [0]), ([4, 2], [1, 2]), ([3, 0], [3, 0])):
        state = run(model, model.start(encoded, part), [names[row] for row in rows])
        assert same_bytes(contents(state), contents(whole.gather(rows))), rows


def test_padding_beyond_a_step_changes_rounding_only() -> None:
    model = tiny_model(text_length=512)
    text = "two green rings and a blue square"
    (short,) = model.encode_text([text])
    features, lens = model.text_encoder.encode([text])
    padded = torch.nn.functional.pad(features, (0, 0, 0, 512 - features.shape[1]))
    with torch.inference_mode():
        whole = model.transformer.condition(padded, lens, guidance=True)
        assert (short.text_mask.shape[1], whole.text_mask.shape[1]) == (16, 512)
        logits = [model.transformer.scale_step(None, 0, KVCache(), known)[0] for known in (short, whole)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-5)
    assert logits[0].std() > 1


def test_large_images_are_decoded_one_at_a_time_on_a_cpu_and_small_ones_together(
    model: InfinityModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    decode = model.tokenizer.decode

    def counted(maps: torch.Tensor) -> torch.Tensor:
        rows.append(len(maps))
        return decode(maps)

    monkeypatch.setattr(model.tokenizer, "decode", counted)
    maps = torch.randn(3, 8, 64, 64)
    together = model.decode_float(maps)
    assert rows == [1, 1, 1], "256 pixels a side"
    alone = model.decode_float(maps[1:2])
    assert torch.equal(alone, together[1:2])
    assert rows[3:] == [1], "not beside a copy of itself"
    model.decode_float(maps[:, :, :6, :6])
    assert rows[4:] == [3]


def test_texts_are_encoded_alike_alone_and_together(model: InfinityModel) -> None:
    together = model.encode_text(PROMPTS)
    for prompt, expected in zip(PROMPTS, together, strict=True):
        (alone,) = model.encode_text([prompt])
        assert torch.equal(alone.pooled, expected.pooled)
        assert torch.equal(alone.block_modulation, expected.block_modulation)
        assert torch.equal(alone.text_mask, expected.text_mask)
        assert same_bytes(alone.keys, expected.keys)
        assert same_bytes(alone.values, expected.values)


@pytest.mark.parametrize("upto", [1, 4, len(REPEATED_SCHEDULE)])
def test_replay_from_bits_equals_the_state_that_drew_them(model: InfinityModel, upto: int) -> None:
    names = ["x", "y", "z"]
    drawn = run(model, start(model, [0, 1, 1]), names, upto)
    replayed = model.replay(start(model, [0, 1, 1]), model.bits(drawn))
    assert same_bytes(contents(replayed), contents(drawn))
    assert same_bytes(contents(run(model, replayed, names)), contents(run(model, drawn, names)))


def test_replay_goes_on_from_a_state_in_the_middle(model: InfinityModel) -> None:
    names = ["x", "y"]
    early = run(model, start(model, [0, 2]), names, 3)
    late = run(model, early, names, 6)
    assert same_bytes(contents(model.replay(early, model.bits(late)[3:])), contents(late))


def test_survivors_of_a_gather_go_on_as_if_alone(model: InfinityModel) -> None:
    names = ["x", "y", "z", "w"]
    population = run(model, start(model, [0, 0, 1, 2]), names, 4)
    survivors = model.gather(population, [3, 0, 0])
    assert len(survivors.texts) == 2, "the text nobody has any more is let go"
    finished = run(model, survivors, ["w", "x", "again"])
    whole = run(model, population, names)
    assert np.array_equal(model.bits(finished)[-1][:2], model.bits(whole)[-1][[3, 0]])
    assert not np.array_equal(model.bits(finished)[-1][2], model.bits(whole)[-1][0])


def test_states_of_different_prompts_stack_and_part(model: InfinityModel) -> None:
    first = run(model, start(model, [0, 0]), ["x", "y"], 3)
    second = run(model, start(model, [1]), ["z"], 3)
    joined = model.concatenate([second, first, model.gather(first, [1])])
    assert joined.num_rows == 4
    finished = run(model, joined, ["z", "x", "y", "y2"])
    alone = run(model, first, ["x", "y"])
    assert same_bytes(contents(model.gather(finished, [1, 2])), contents(alone))


def test_concatenate_refuses_states_before_different_scales(model: InfinityModel) -> None:
    with pytest.raises(ValueError, match="one common scale"):
        model.concatenate([start(model, [0]), run(model, start(model, [0]), ["x"], 1)])
    with pytest.raises(ValueError, match="one common scale"):
        model.concatenate([])


def test_states_are_values(model: InfinityModel) -> None:
    state = run(model, start(model, [0, 1]), ["x", "y"], 3)
    copies = [tensor.clone() for tensor in contents(state)]
    run(model, state, ["x", "y"])
    model.gather(state, [1, 1])
    model.decode(state)
    assert same_bytes(contents(state), copies)


def test_guidance_one_runs_the_conditional_stream_alone() -> None:
    plain, guided = tiny_model(guidance=1.0), tiny_model(guidance=3.0)
    one = run(plain, start(plain, [0, 1]), ["x", "y"], 3)
    two = run(guided, start(guided, [0, 1]), ["x", "y"], 3)
    assert one.cache.layers[0].keys.shape[0] == 1
    assert two.cache.layers[0].keys.shape[0] == 2
    assert one.cache.nbytes * 2 == two.cache.nbytes


def test_where_guidance_is_one_to_the_end_the_other_stream_is_left_and_nothing_changes() -> None:
    guided = (3.0, 1.0, 2.0, 3.0)
    cut, both = (tiny_model(guidance=[*guided, *rest]) for rest in ((1.0,) * 4, (1.0, 1.0, 1.0, 1.0 + 1e-9)))
    assert [cut.sampling.streams_at(scale) for scale in range(8)] == [2, 2, 2, 2, 1, 1, 1, 1]
    assert [both.sampling.streams_at(scale) for scale in range(8)] == [2] * 8, "what a later scale attends to"
    assert not any(one.sampling.begins_unconditional(scale) for one in (cut, both) for scale in range(8))
    names = ["x", "y"]
    one, two = start(cut, [0, 1]), start(both, [0, 1])
    for scale in range(8):
        one, two = run(cut, one, names, scale + 1), run(both, two, names, scale + 1)
        streams = cut.sampling.streams_at(scale) if scale < 7 else 1
        assert one.cache.tensor.shape[2] == streams, scale
        for mine, theirs in zip(one.cache.layers, two.cache.layers, strict=True):
            assert torch.equal(mine.keys, theirs.keys[:streams]), scale
        assert torch.equal(one.bits[scale], two.bits[scale]), scale
    assert np.array_equal(cut.decode(one), both.decode(two))
    assert same_bytes(contents(cut.replay(start(cut, [0, 1]), cut.bits(one))), contents(one))


@pytest.mark.parametrize("recorder", [None, PlainRecorder()])
def test_where_guidance_begins_late_the_other_stream_catches_up_and_nothing_changes(recorder: Any) -> None:
    guided = (1.0, 1.0, 3.0, 1.0, 2.0, 1.0, 1.0)
    late, both = (tiny_model(guidance=[first, *guided]) for first in (1.0, 1.0 + 1e-9))
    for each in (late, both):
        each.record_passes(recorder)
    assert [late.sampling.streams_at(scale) for scale in range(8)] == [1, 1, 1, 2, 2, 2, 1, 1]
    assert [scale for scale in range(8) if late.sampling.begins_unconditional(scale)] == [3]
    names = ["x", "y", "z"]
    texts = ["a red circle", "two green rings and a blue square and " + "a red circle and " * 4]
    one, two = (each.start(each.encode_text(texts), [0, 1, 1]) for each in (late, both))
    for scale in range(8):
        one, two = run(late, one, names, scale + 1), run(both, two, names, scale + 1)
        streams = late.sampling.streams_at(min(scale, 6))
        assert one.cache.tensor.shape[2] == streams, scale
        for mine, theirs in zip(one.cache.layers, two.cache.layers, strict=True):
            assert torch.equal(mine.keys, theirs.keys[:streams]), scale
            assert torch.equal(mine.values, theirs.values[:streams]), scale
        assert torch.equal(one.bits[scale], two.bits[scale]), scale
        if scale == 2:
            # A survivor that is kept twice, and one that came from its bits.
            other = late.replay(
                late.start(late.encode_text(texts), [1, 1, 0]), late.bits(one.gather([2, 2, 0]))
            )
            one, two = other, two.gather([2, 2, 0])
    assert np.array_equal(late.decode(one), both.decode(two))


@pytest.mark.parametrize("stops", [(), (2, 5, 7), (7,)])
def test_where_memory_is_taken_changes_no_value(model: InfinityModel, stops: tuple[int, ...]) -> None:
    names = ["x", "y"]
    expected = contents(run(model, start(model, [0, 1]), names))
    own = tiny_model()
    own.execution = Execution(stops=stops)
    state, past = start(own, [0, 1]), []
    for scale in range(own.num_scales):
        state = run(own, state, names, scale + 1)
        past.append((state, [tensor.clone() for tensor in contents(state)]))
    assert same_bytes(contents(state), expected)
    for earlier, copies in past:
        assert same_bytes(contents(earlier), copies), "a state is a value"
        assert same_bytes(contents(run(own, earlier, names)), expected), "and may be gone on from again"
    addresses = {id(earlier.cache.memory) for earlier, _ in past}
    assert len(addresses) == (len(stops) if stops else 7)


def test_the_cache_holds_a_key_and_a_value_per_token_but_for_the_last_scale(model: InfinityModel) -> None:
    config, state = model.transformer.config, start(model, [0, 1, 2])
    per_token = 3 * model.num_streams * 2 * config.depth * config.embed_dim * model.block_dtype.itemsize
    counts = [height * width for height, width in model.scale_schedule]
    for scale in range(model.num_scales):
        state = run(model, state, ["x", "y", "z"], scale + 1)
        assert state.cache.nbytes == per_token * sum(counts[:-1][: scale + 1])


def test_text_matters_and_seed_matters(model: InfinityModel) -> None:
    bits = model.bits(run(model, start(model, [0, 1, 0]), ["same", "same", "other"]))
    assert not np.array_equal(bits[-1][0], bits[-1][1])
    assert not np.array_equal(bits[-1][0], bits[-1][2])


def test_decoding_any_time_and_at_selector_size(model: InfinityModel) -> None:
    state = run(model, start(model, [0, 1]), ["x", "y"], 5)
    full = model.decode(state)
    assert full.shape == (2, model.image_height, model.image_width, 3) == (2, 24, 24, 3)
    assert full.dtype == np.uint8
    assert np.array_equal(model.decode(state, size="selector"), full), "already small"


def test_selector_images_of_a_large_model_are_small() -> None:
    schedule = ((1, 1), (2, 3), (80, 128))
    model = tiny_model(schedule=schedule)
    summed = torch.linspace(-1, 1, 80 * 128).reshape(1, 1, 80, 128).expand(2, 8, 80, 128).contiguous()
    state = ScaleState(
        texts=model.encode_text(["a ring"]), text_rows=(0, 0), summed=summed, cache=start(model, [0]).cache
    )
    small = model.decode(state, size="selector")
    assert small.shape == (2, 160, 256, 3)
    assert model.decode(state).shape == (2, 320, 512, 3)


def test_wrong_shapes_are_named(model: InfinityModel) -> None:
    state = start(model, [0])
    with pytest.raises(ValueError, match=r"uniforms: expected \(1, 8\) at scale 0"):
        model.advance(state, np.zeros((2, 8), np.float32))
    with pytest.raises(ValueError, match=r"bits: expected \(1, 1, 8\) at scale 0"):
        model.replay(state, [np.zeros((1, 4, 8), np.uint8)])
    finished = run(model, state, ["x"])
    with pytest.raises(ValueError, match="all 8 scales are finished"):
        model.advance(finished, np.zeros((1, 8), np.float32))


def test_long_prompts_are_cut() -> None:
    encoder, words = text_parts()
    features, lens = T5TextEncoder(encoder, words, TEXT_LENGTH).encode(["a red circle", "red " * 50, ""])
    assert features.shape == (3, TEXT_LENGTH, 16)
    assert lens.tolist() == [4, TEXT_LENGTH, 1]


def test_a_prompt_longer_than_what_is_read_is_said_to_be_cut(model: InfinityModel) -> None:
    most = " ".join(["red"] * (TEXT_LENGTH - 1))  # and the end token
    assert [model.cuts_text(text) for text in ("a red circle", most, f"{most} red", "")] == [
        False,
        False,
        True,
        False,
    ]


def test_a_tokenizer_without_end_token_is_refused() -> None:
    encoder, words = text_parts()
    words.backend_tokenizer.post_processor = None
    bare = type(words)(tokenizer_object=words.backend_tokenizer, pad_token="<pad>", unk_token="<unk>")
    bare.backend_tokenizer.post_processor = __import__("tokenizers").processors.Sequence([])
    with pytest.raises(CheckpointError, match="no token at all"):
        T5TextEncoder(encoder, bare, TEXT_LENGTH).encode([""])
