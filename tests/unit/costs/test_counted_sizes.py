"""Counts against the published models, and against the modules here: parameters, decoder and reward FLOPs."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from ttsvar_ray.costs import TransformerShape
from ttsvar_ray.costs.blip import blip_cost
from ttsvar_ray.costs.decoder import DecoderShape
from ttsvar_ray.costs.encoder import T5_XL
from ttsvar_ray.costs.memory import transformer_parameters, transformer_weight_bytes
from ttsvar_ray.features.registry import EXTRACTORS
from ttsvar_ray.models.infinity.presets import PRESETS, InfinityPreset
from ttsvar_ray.models.infinity.resolutions import published_resolution
from ttsvar_ray.models.infinity.tokenizer import Activation, ImageTokenizer, Norm, TokenizerConfig
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.rewards.blip import PUBLISHED_IMAGE_REWARD
from ttsvar_ray.rewards.registry import REWARDS

PUBLISHED_BILLIONS = {
    "infinity-2b": 2.205,
    "infinity-8b": 8.376,
    "infinity-8b-512": 8.376,
    "infinity-125m": 0.125,
    "infinity-layer16": 0.362,
    "infinity-1b": 0.941,
    "infinity-layer32": 2.257,
    "infinity-layer40": 4.716,
    "infinity-layer48": 8.767,
    "infinity-20b": 19.95,
}

F16 = DecoderShape(codebook_dim=32)
F8 = DecoderShape(codebook_dim=14, encoder_multipliers=(1, 2, 4, 4), decoder_multipliers=(1, 2, 4, 4))


def shape_of(preset: InfinityPreset, element_bytes: int = 2) -> TransformerShape:
    sizes = preset.transformer_config()
    return TransformerShape(
        embed_dim=sizes.embed_dim,
        depth=sizes.depth,
        ffn_dim=sizes.ffn_dim,
        bits_per_token=sizes.bits_per_token,
        num_heads=sizes.num_heads,
        kv_element_bytes=element_bytes,
    )


@pytest.mark.parametrize(("name", "billions"), PUBLISHED_BILLIONS.items())
def test_published_parameter_counts(name: str, billions: float) -> None:
    assert transformer_parameters(shape_of(PRESETS[name])).total / 1e9 == pytest.approx(billions, rel=0.005)


@pytest.mark.parametrize("name", ["infinity-2b", "infinity-8b", "infinity-125m"])
def test_parameters_and_bytes_are_the_modules_own(name: str) -> None:
    preset = PRESETS[name]
    resolution = published_resolution(preset.size)
    with torch.device("meta"):
        module = InfinityTransformer(preset.transformer_config(resolution), resolution.schedule)
    module.set_block_dtype(torch.bfloat16)
    count = transformer_parameters(shape_of(preset))
    assert count.total == sum(parameter.numel() for parameter in module.parameters())
    held = [*module.parameters(), *module.buffers()]
    assert transformer_weight_bytes(shape_of(preset)) == sum(t.numel() * t.element_size() for t in held)


@pytest.mark.parametrize(
    "config",
    [
        TokenizerConfig(codebook_dim=32),
        TokenizerConfig(codebook_dim=14, encoder_multipliers=(1, 2, 4, 4), decoder_multipliers=(1, 2, 4, 4)),
        TokenizerConfig(
            codebook_dim=16,
            base_channels=96,
            encoder_multipliers=(1,),
            decoder_multipliers=(1,),
            num_res_blocks=1,
            pixel_shuffle=4,
            norm=Norm.NONE,
            activation=Activation.RELU,
        ),
    ],
)
def test_tokenizer_parameters_are_the_modules_own(config: TokenizerConfig) -> None:
    with torch.device("meta"):
        module = ImageTokenizer(config)
    shape = DecoderShape.from_section({**vars_of(config), "norm": config.norm.value})
    assert shape.parameters == sum(p.numel() for p in module.decoder.parameters())
    assert shape.encoder_parameters == sum(p.numel() for p in module.encoder.parameters())


def vars_of(config: TokenizerConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__slots__}


def test_published_decoder_flops() -> None:
    tera = 1e12
    assert F16.decode_flops(64, 64) / tera == pytest.approx(9.85, rel=0.002)
    assert F16.decode_flops(32, 32) / tera == pytest.approx(2.46, rel=0.002)
    assert F16.decode_flops(16, 16) / tera == pytest.approx(0.616, rel=0.002)
    assert F16.encode_flops(64, 64) / tera == pytest.approx(4.16, rel=0.002)
    assert F8.decode_flops(128, 128) / tera == pytest.approx(9.89, rel=0.002)
    assert (F8.parameters + F8.encoder_parameters) / 1e6 == pytest.approx(81.6, rel=0.002)


def test_published_selector_and_text_flops() -> None:
    image_reward, dinov2 = REWARDS["image-reward"].weights.cost, EXTRACTORS["pca"].weights.cost
    assert image_reward is not None
    assert dinov2 is not None
    assert image_reward.image_flops / 1e12 == pytest.approx(0.137, rel=0.02)
    assert dinov2.image_flops / 1e12 == pytest.approx(0.165, rel=0.02)
    assert T5_XL.flops() / 1e12 == pytest.approx(1.24, rel=0.02)
    assert T5_XL.flops(32) / 1e12 == pytest.approx(0.07, rel=0.07)
    assert image_reward.parameters / 1e6 == pytest.approx(446.7, rel=0.01)
    assert T5_XL.parameters / 1e9 == pytest.approx(1.2235, rel=0.001)


def test_a_blip_of_the_published_size_costs_what_the_published_one_says() -> None:
    published = PUBLISHED_IMAGE_REWARD
    counted = blip_cost(asdict(published.vision), asdict(published.text), published.max_text_tokens)
    assert counted == REWARDS["image-reward"].weights.cost
