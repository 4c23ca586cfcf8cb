"""VAR against outputs of the public code: logits, restricted probabilities, feature maps, images, keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.var import SMALL_CASES, load_case, public_keys, tokens_to_bits
from ttsvar_ray.models.sampling import restricted_probabilities
from ttsvar_ray.models.var.config import PRESETS, VqConfig
from ttsvar_ray.models.var.directory import TOKENIZER_KEYS, TRANSFORMER_KEYS
from ttsvar_ray.models.var.tokenizer import VqDecoder
from ttsvar_ray.models.var.transformer import VarTransformer
from ttsvar_ray.vision.checkpoints import load_strict, rename_keys

# Logits have a standard deviation of about 1; images lie in [-1, 1].
LOGITS_TOLERANCE = 5e-5
MAP_TOLERANCE = 5e-5
IMAGE_TOLERANCE = 2e-4


@pytest.mark.parametrize("name", SMALL_CASES)
def test_forced_generation_computes_what_the_public_code_computes(name: str) -> None:
    case = load_case(name)
    model, tensors = case.model, case.tensors
    streams = 2
    state = model.start(tuple(tensors["labels"].tolist()), [0, 1])
    assert model.num_scales == len(case.config["sides"])
    for scale_index in range(model.num_scales):
        raw, _ = model.transformer.scale_step(
            None if scale_index == 0 else case.next_features(state),
            scale_index,
            state.cache,
            model.transformer.condition(tensors["labels"], streams=range(2)),
            streams=streams,
        )
        expected = tensors[f"raw_logits.{scale_index}"].unflatten(0, (streams, -1))
        torch.testing.assert_close(raw, expected, atol=LOGITS_TOLERANCE, rtol=0)

        seen: list[torch.Tensor] = []

        def forced(logits: torch.Tensor, index: int = scale_index, seen: list[Any] = seen) -> torch.Tensor:
            seen.append(logits)
            return tokens_to_bits(tensors[f"tokens.{index}"], model.bits_per_token)

        state = model.advance_with(state, forced)
        probabilities = restricted_probabilities(
            seen[0], top_k=model.sampling.top_k, top_p=model.sampling.top_p
        )
        wanted = tensors[f"probabilities.{scale_index}"]
        assert torch.equal(probabilities > 0, wanted > 0), "other entries survive top-k and top-p"
        torch.testing.assert_close(probabilities, wanted, atol=LOGITS_TOLERANCE, rtol=0)
        torch.testing.assert_close(state.summed, tensors[f"summed.{scale_index}"], atol=MAP_TOLERANCE, rtol=0)
    image = (model.decode_float(state.summed) + 1) / 2
    torch.testing.assert_close(image, tensors["image"], atol=IMAGE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", SMALL_CASES)
def test_replayed_tokens_rebuild_the_forced_state(name: str) -> None:
    case = load_case(name)
    tokens = [case.tensors[f"tokens.{k}"] for k in range(case.model.num_scales)]
    bits = [tokens_to_bits(scale, case.model.bits_per_token).numpy() for scale in tokens]
    start = case.model.start(tuple(case.tensors["labels"].tolist()), [0, 1])
    state = case.model.replay(start, bits)
    torch.testing.assert_close(
        state.summed, case.tensors[f"summed.{case.model.num_scales - 1}"], atol=MAP_TOLERANCE, rtol=0
    )
    for ours, given in zip(case.model.bits(state), bits, strict=True):
        assert np.array_equal(ours, given)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_published_key_has_its_place(name: str) -> None:
    preset = PRESETS[name]
    published = public_keys()[name]
    meta = {key: torch.empty(shape, device="meta") for key, shape in published.items()}
    with torch.device("meta"):
        transformer = VarTransformer(preset.transformer, preset.scale_schedule)
    kept = rename_keys(meta, TRANSFORMER_KEYS, source=preset.checkpoint)
    load_strict(transformer, kept, source=preset.checkpoint, assign=True)
    count = sum(parameter.numel() for parameter in transformer.parameters())
    assert count == pytest.approx(preset.parameters, rel=0.04), f"{name} has {count / 1e6:.0f} M parameters"
    dropped = {key.rpartition(".")[2] for key in set(published) - set(kept)}
    assert dropped == {"lvl_1L", "attn_bias_for_masking", "zero_k_bias"}


def test_every_published_tokenizer_key_has_its_place() -> None:
    published = public_keys()["vae_ch160v4096z32"]
    meta = {key: torch.empty(shape, device="meta") for key, shape in published.items()}
    with torch.device("meta"):
        tokenizer = VqDecoder(VqConfig())
    kept = rename_keys(meta, TOKENIZER_KEYS, source="vae_ch160v4096z32.pth")
    load_strict(tokenizer, kept, source="vae_ch160v4096z32.pth", assign=True)
    dropped = {key.split(".")[0] for key in set(published) - set(kept)}
    assert dropped == {"encoder", "quant_conv", "quantize"}
    assert "quantize.ema_vocab_hit_SV" not in kept
    assert "quantize.embedding.weight" in kept


def test_a_damaged_weight_is_seen() -> None:
    """The tolerances can fail: one weight in ten thousand, changed a little, breaks them."""
    case = load_case("own_modulation")
    with torch.no_grad():
        case.model.transformer.blocks[0].attn.proj.weight[0, 0] += 0.05
    labels = case.tensors["labels"]
    raw, _ = case.model.transformer.scale_step(
        None,
        0,
        case.model.start((0,), [0]).cache,
        case.model.transformer.condition(labels, streams=range(2)),
        streams=2,
    )
    difference = (raw - case.tensors["raw_logits.0"].unflatten(0, (2, -1))).abs().max()
    assert difference > LOGITS_TOLERANCE
