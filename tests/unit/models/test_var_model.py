"""VAR as an engine sees it: rows independent of their batch, replay exact, draws as the softmax says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.var import load_case, same_state, tokens_to_bits
from ttsvar_ray.errors import ConfigurationError, InputError
from ttsvar_ray.models.sampling import draw_token_bits, restricted_probabilities
from ttsvar_ray.models.state import ScaleState
from ttsvar_ray.models.var.config import VarConfig, linear_guidance
from ttsvar_ray.models.var.model import ClassNames, imagenet_classes
from ttsvar_ray.models.var.tokenizer import bits_to_tokens


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    return load_case("shared_modulation").model


def _uniforms(model, rows: int, scale_index: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Return numbers that depend on the row alone, as named streams do."""
    height, width = model.scale_schedule[scale_index]
    count = height * width * model.bits_per_token
    draws = [np.random.default_rng((row, scale_index)).random(count, dtype=np.float32) for row in range(rows)]
    return np.stack(draws)


def _run(model, labels: list[int], rows: list[int], scales: int) -> ScaleState:  # type: ignore[no-untyped-def]
    """Run some of six trajectories for some scales."""
    state = model.start(tuple(labels), rows)
    for scale_index in range(scales):
        state = model.advance(state, _uniforms(model, 6, scale_index)[rows])
    return state


def test_a_row_is_the_same_bytes_in_any_batch(model) -> None:  # type: ignore[no-untyped-def]
    labels = [0, 3, 3, 5, 6, 1]
    whole = _run(model, labels, [0, 1, 2, 3, 4, 5], model.num_scales)
    images = model.decode(whole)
    assert len({image.tobytes() for image in images}) > 1, "the rows differ, or the test sees nothing"
    for rows in ([2], [5, 0], [1, 3, 4]):
        part = _run(model, labels, rows, model.num_scales)
        assert same_state(part, whole.gather(rows))
        assert np.array_equal(model.decode(part), images[rows])


def test_replay_gather_and_concatenate_go_on_as_if_nothing_had_happened(model) -> None:  # type: ignore[no-untyped-def]
    labels = [0, 3, 3, 5, 6, 1]
    straight = _run(model, labels, [0, 1, 2, 3], 3)
    replayed = model.replay(model.start(tuple(labels), [0, 1, 2, 3]), model.bits(straight))
    assert same_state(replayed, straight)
    drawn = model.drawn(model.bits(straight))
    assert np.array_equal(model.decode(drawn), model.decode(straight))
    parts = model.concatenate([model.gather(straight, [0, 1]), model.gather(replayed, [2, 3])])
    assert same_state(parts, straight)
    uniforms = _uniforms(model, 4, 3)
    assert same_state(model.advance(parts, uniforms), model.advance(straight, uniforms))


def test_cache_holds_a_key_and_a_value_per_token_but_for_the_last_scale(model) -> None:  # type: ignore[no-untyped-def]
    config, counts = model.transformer.config, [height * width for height, width in model.scale_schedule]
    per_token = 2 * model.num_streams * 2 * config.depth * config.embed_dim * model.block_dtype.itemsize
    for scale_index in range(model.num_scales):
        state = _run(model, [1], [0, 0], scale_index + 1)
        assert state.cache.nbytes == per_token * sum(counts[:-1][: scale_index + 1])


def test_selector_images_are_small_only_where_full_ones_are_large(model) -> None:  # type: ignore[no-untyped-def]
    state = _run(model, [1], [0], 2)
    assert model.decode(state).shape == (1, model.image_height, model.image_width, 3)
    assert model.decode(state, size="selector").shape == model.decode(state).shape
    large = torch.zeros(1, model.tokenizer.config.codebook_dim, 32, 24)
    assert model.decode_float(large, size="selector").shape[-2:] == (256, 192)


@settings(max_examples=60, deadline=None)
@given(
    vocabulary=st.integers(2, 70),
    tokens=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
    top_k=st.one_of(st.none(), st.integers(1, 70)),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
)
def test_only_entries_that_survive_the_restrictions_are_drawn(
    vocabulary: int, tokens: int, seed: int, top_k: int | None, top_p: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(scale=4, size=(2, tokens, vocabulary)).astype(np.float32))
    probabilities = restricted_probabilities(logits, top_k=top_k, top_p=top_p)
    assert torch.allclose(probabilities.sum(-1), torch.ones(2, tokens))
    assert torch.equal(probabilities.argmax(-1), logits.argmax(-1))
    if top_k is not None:
        assert int((probabilities > 0).sum(-1).max()) <= min(top_k, vocabulary)
    bits_per_token = (vocabulary - 1).bit_length()
    uniforms = rng.random((2, tokens, bits_per_token), dtype=np.float32)
    uniforms[0] = np.nextafter(np.float32(1), np.float32(0))
    drawn = bits_to_tokens(draw_token_bits(probabilities, torch.from_numpy(uniforms)))
    assert int(drawn.max()) < vocabulary
    assert bool((probabilities.gather(-1, drawn[..., None]) > 0).all())


def test_bit_by_bit_draws_follow_the_softmax() -> None:
    """Chi-square of 40,000 draws over 11 entries: the 99.9 % quantile with 10 degrees is 29.6."""
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0, -0.3, 0.1, 0.7, -2.0, 0.2, 1.3])
    probabilities = logits.softmax(-1).expand(1, 40_000, 11)
    uniforms = np.random.default_rng(5).random((1, 40_000, 4), dtype=np.float32)
    drawn = bits_to_tokens(draw_token_bits(probabilities, torch.from_numpy(uniforms)))
    counts = torch.bincount(drawn.flatten(), minlength=11).double()
    expected = 40_000 * logits.double().softmax(-1)
    assert float(((counts - expected) ** 2 / expected).sum()) < 29.6


@given(st.integers(1, 12).flatmap(lambda bits: st.tuples(st.just(bits), st.integers(0, 2**bits - 1))))
def test_tokens_survive_the_way_through_their_bits(case: tuple[int, int]) -> None:
    bits_per_token, token = case
    bits = tokens_to_bits(torch.tensor([[token]]), bits_per_token)
    assert int("".join(str(int(bit)) for bit in bits[0, 0]), 2) == token
    assert int(bits_to_tokens(bits)) == token


def test_bits_that_name_no_entry_are_refused() -> None:
    model = load_case("own_modulation").model
    state = model.start((0,), [0])
    with pytest.raises(ValueError, match="expected entries below 48 at scale 0, got 63"):
        model.replay(state, [np.ones((1, 1, 6), dtype=np.uint8)])


def test_prompts_are_class_names_or_numbers() -> None:
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert classes.label("Golden_Retriever") == classes.label(" golden  retriever ") == 207
    assert classes.label("285") == 285
    assert classes.name(285) == "Egyptian cat"
    assert classes.label("lakeside") == 975
    with pytest.raises(InputError, match=r"'crane': names 2 classes; give a number: 134 .* 517"):
        classes.label("crane")
    with pytest.raises(InputError, match=r"near: .*goldfish"):
        classes.label("goldfisch")
    with pytest.raises(InputError, match="from 0 to 999, got 1000"):
        classes.label("1000")


def test_class_names_survive_their_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    ClassNames([["red", "scarlet"], ["blue"]]).write(tmp_path / "classes.json")
    assert ClassNames.read(tmp_path / "classes.json").label("Scarlet") == 0


def test_published_guidance_rises_from_one() -> None:
    assert linear_guidance(1.5, 4) == pytest.approx((1.0, 1.5, 2.0, 2.5))


def test_config_errors_come_all_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        VarConfig.from_json({"embed_dim": 8, "depth": 1, "width": 3})
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigurationError, match="bits_per_token: expected 12"):
        VarConfig.from_json({"embed_dim": 8, "depth": 1, "num_heads": 2, "bits_per_token": 13})
