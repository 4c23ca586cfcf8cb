"""Counts against the published models, and against numbers recorded when they were formulas."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5EncoderModel
from typer.testing import CliRunner

from ttsvar_ray.cli.app import app
from ttsvar_ray.costs.count import count_scales, tracing
from ttsvar_ray.costs.encoder import T5_XL, EncoderShape, blip_cost
from ttsvar_ray.costs.model import ModelCost, ScaleCost, recorded_costs
from ttsvar_ray.features.registry import EXTRACTORS
from ttsvar_ray.job.footprint import cost_digest, count_costs
from ttsvar_ray.models.infinity.config import TokenizerConfig
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.registry import describe_model, family_entry
from ttsvar_ray.rewards.blip import PUBLISHED_IMAGE_REWARD, BlipRewardNetwork
from ttsvar_ray.rewards.registry import REWARDS

RECORDED = json.loads((Path(__file__).parents[2] / "data" / "costs" / "plans.json").read_text())

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
    "var-d16": 0.310,
    "var-d30": 2.01,
}


@pytest.mark.parametrize(("name", "billions"), PUBLISHED_BILLIONS.items())
def test_published_parameter_counts(name: str, billions: float) -> None:
    description = describe_model(name)
    on_meta = family_entry(description.family).on_meta
    assert on_meta is not None
    transformer = on_meta(description, dtype=torch.bfloat16, sampling=description.sampling).transformer
    count = sum(parameter.numel() for parameter in transformer.parameters())
    assert count / 1e9 == pytest.approx(billions, rel=0.005)


@pytest.mark.parametrize("record", RECORDED, ids=lambda record: " ".join(record["arguments"]))
def test_a_plan_says_what_was_recorded(record: dict[str, Any]) -> None:
    # As it was recorded: float32 judges, no recorded passes, and as many rows in each segment.
    settings = (
        "engine.cuda_graphs=never",
        "engine.micro_batch_rows=32",
        "reward.dtype=float32",
        "features.dtype=float32",
    )
    given = [word for setting in settings for word in ("--set", setting)]
    result = CliRunner().invoke(app, ["plan", *record["arguments"], *given, "--json"])
    assert result.exit_code == 0, result.output
    said, recorded = json.loads(result.stdout), record["plan"]
    stages = {stage["name"]: stage for stage in said["memory"]["stages"]}
    for stage in recorded["memory"].pop("stages"):
        near(stages[stage.pop("name")], stage)
    if recorded.get("seconds"):
        assert said["seconds"]["segments"] == pytest.approx(recorded["seconds"], rel=0.02)
    for scale, expected in zip(said["scales"], recorded["scales"], strict=True):
        near(scale, expected)
    near(said["parameters"], recorded["parameters"])
    near(said["flops"], recorded["flops"])
    near(said["memory"]["weights"], recorded["memory"].pop("weights"))
    near(said["memory"], recorded["memory"])


def near(said: dict[str, Any], recorded: dict[str, Any]) -> None:
    assert {key: said[key] for key in recorded} == pytest.approx(recorded, rel=0.02)


@pytest.mark.parametrize(("name", "dtype"), [("shapes", "float32"), ("infinity-2b", "bfloat16")])
def test_recorded_costs_are_those_that_are_counted(name: str, dtype: str) -> None:
    description = describe_model(name)
    recorded, counted = recorded_costs()[cost_digest(description, dtype)], count_costs(description, dtype)
    # What is alive at a peak hangs on when garbage is collected, in the fifth digit.
    expected = [pytest.approx(value, rel=1e-4) for value in numbers(counted)]
    assert list(numbers(recorded)) == expected, "python -m tools.counted_costs writes them anew"


def numbers(cost: ModelCost) -> Iterator[float]:
    parts = [cost.text, *cost.scales, *cost.decodes.values()]
    for values in (cost.parameters, cost.weight_bytes, *map(asdict, parts)):
        yield from values.values()
    yield from (cost.depth, cost.element_bytes, cost.block_bytes)


@pytest.mark.parametrize(
    ("multipliers", "channels", "cells", "tera"),
    [
        ((1, 2, 4, 4, 4), 32, 64, 9.85),
        ((1, 2, 4, 4, 4), 32, 32, 2.46),
        ((1, 2, 4, 4, 4), 32, 16, 0.616),
        ((1, 2, 4, 4), 14, 128, 9.89),
    ],
)
def test_published_decoder_flops(
    multipliers: tuple[int, ...], channels: int, cells: int, tera: float
) -> None:
    with torch.device("meta"):
        tokenizer = ImageTokenizer(
            TokenizerConfig(
                codebook_dim=channels, encoder_multipliers=multipliers, decoder_multipliers=multipliers
            )
        )
    features = torch.empty(1, channels, cells, cells, device="meta")
    with tracing() as wide:
        tokenizer.decode(features)
    with tracing(narrow=torch.bfloat16) as narrow:
        tokenizer.decode(features)
    assert wide.flops / 1e12 == pytest.approx(tera, rel=0.002)
    assert narrow.flops == wide.flops
    assert narrow.peak_bytes < 1.05 * wide.peak_bytes, "half the bytes, and copies with the channels last"


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


@pytest.mark.parametrize(("width", "ffn_dim", "heads", "tokens"), [(256, 640, 8, 128), (128, 96, 4, 40)])
def test_t5_costs_what_its_modules_do(width: int, ffn_dim: int, heads: int, tokens: int) -> None:
    sizes = {"d_model": width, "d_ff": ffn_dim, "num_heads": heads, "d_kv": width // heads, "vocab_size": 100}
    with torch.device("meta"):
        published = T5EncoderModel(
            T5Config(num_layers=24, d_model=2048, d_ff=5120, num_heads=32, feed_forward_proj="gated-gelu")
        )
    assert T5_XL.parameters == pytest.approx(parameters_of(published), rel=0.001)
    model = T5EncoderModel(T5Config(num_layers=2, feed_forward_proj="gated-gelu", **sizes)).eval()
    formula = EncoderShape(
        width=width, depth=2, ffn_dim=ffn_dim, tokens=tokens, gated=True, heads=heads, vocabulary=100
    )
    ids = torch.zeros(1, tokens, dtype=torch.long)
    with tracing() as trace:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert trace.flops + trace.attention_flops + trace.masked_flops == pytest.approx(
        formula.flops(), rel=1e-6
    )
    assert parameters_of(model) == pytest.approx(formula.parameters, rel=0.005)


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({}, {}),
        ({"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "patch_size": 32}, {}),
        ({}, {"hidden_size": 192, "intermediate_size": 1024, "num_attention_heads": 4}),
    ],
)
def test_a_blip_reward_costs_what_its_modules_do(vision: dict[str, int], text: dict[str, int]) -> None:
    published = PUBLISHED_IMAGE_REWARD
    config = replace(
        published,
        vision=replace(published.vision, num_hidden_layers=1, **vision),
        text=replace(published.text, num_hidden_layers=1, vocab_size=100, **text),
    )
    network = BlipRewardNetwork(config).eval()
    formula = blip_cost(asdict(config.vision), asdict(config.text), config.max_text_tokens)
    pixels = torch.zeros(1, 3, config.vision.image_size, config.vision.image_size)
    ids = torch.zeros(1, config.max_text_tokens, dtype=torch.long)
    with tracing() as trace:
        network.read_text(network.encode_image(pixels), ids, torch.ones_like(ids))
    assert trace.flops == pytest.approx(formula.image_flops, rel=0.005)
    blocks = (*network.vision.encoder.parameters(), *network.text.encoder.parameters())
    embeddings = formula.parameters - sum(parameter.numel() for parameter in blocks)
    assert 0 < embeddings < 0.15 * formula.parameters


def parameters_of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", ["infinity-125m", "var-d16"])
def test_scales_behind_the_last_guided_one_cost_one_stream(name: str) -> None:
    description = describe_model(name)
    on_meta = family_entry(description.family).on_meta
    assert on_meta is not None
    scales = description.num_scales

    def counted(guidance: tuple[float, ...]) -> tuple[ScaleCost, ...]:
        sampling = dataclasses.replace(description.sampling, guidance=guidance)
        sized = dataclasses.replace(description, transformer={**description.transformer, "depth": 2})
        return count_scales(on_meta(sized, dtype=torch.bfloat16, sampling=sampling))

    both, cut = counted((4.0,) * scales), counted((1.0, *(4.0,) * (scales - 3), 1.0, 1.0))
    for index, (two, one) in enumerate(zip(both, cut, strict=True)):
        left = index >= scales - 2
        assert one.linear_flops == pytest.approx(two.linear_flops / (2 if left else 1), rel=0.03), index
        assert one.kv_bytes == two.kv_bytes / (2 if left else 1), index
        # A number of eight bytes may still be alive in one of them.
        assert one.running_bytes <= 1.001 * two.running_bytes, index
        assert (one.running_bytes < 0.99 * two.running_bytes) == left, index
