"""Aesthetic rewards: two encoders, heads that are never shipped, and what a score is."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from tests.support.tiny_clip import save_clip, save_siglip
from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.rewards.aesthetic_reward import AestheticReward
from ttsvar_ray.rewards.registry import REWARDS, build_reward

LAION_HEAD = REWARDS["laion-aesthetic"].settings["head"]
V25_HEAD = REWARDS["aesthetic-v2.5"].settings["head"]

HEAD_WIDTHS = (1024, 128, 64, 16, 1)


def write_head(
    path: Path, *, prefix: str, indices: tuple[int, ...], width: int
) -> list[tuple[Tensor, Tensor]]:
    """Write a head with random weights; return its layers."""
    generator = torch.Generator().manual_seed(1)
    layers, content = [], {}
    for index, out in zip(indices, HEAD_WIDTHS, strict=True):
        weight = torch.randn(out, width, generator=generator) / width**0.5
        bias = torch.randn(out, generator=generator) / 10
        content[f"{prefix}.{index}.weight"], content[f"{prefix}.{index}.bias"] = weight, bias
        layers.append((weight, bias))
        width = out
    torch.save(content, path)
    return layers


def affine(layers: list[tuple[Tensor, Tensor]], unit: Tensor) -> Tensor:
    for weight, bias in layers:
        unit = unit @ weight.T + bias
    return unit[:, 0]


def load_laion_aesthetic(folder: Path) -> AestheticReward:
    return cast(AestheticReward, build_reward("laion-aesthetic", path=folder))


def load_aesthetic_v25(folder: Path) -> AestheticReward:
    return cast(AestheticReward, build_reward("aesthetic-v2.5", path=folder))


def images(count: int) -> np.ndarray:
    return np.random.default_rng(8).integers(0, 256, (count, 50, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def laion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("laion")
    save_clip(folder / "clip", tokenizer=False)
    write_head(folder / LAION_HEAD, prefix="layers", indices=(0, 2, 4, 6, 7), width=24)
    return folder


@pytest.fixture(scope="module")
def v25_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v25")
    save_siglip(folder / "siglip")
    write_head(folder / V25_HEAD, prefix="scoring_head", indices=(0, 2, 4, 6, 8), width=32)
    return folder


def test_laions_score_is_the_head_of_the_projected_unit_embedding(tmp_path: Path) -> None:
    model = save_clip(tmp_path / "clip", tokenizer=False)
    layers = write_head(tmp_path / LAION_HEAD, prefix="layers", indices=(0, 2, 4, 6, 7), width=24)
    reward = load_laion_aesthetic(tmp_path)
    with torch.inference_mode():
        embedding = model.get_image_features(pixel_values=reward.preprocess(images(5))).pooler_output
        expected = affine(layers, embedding / embedding.norm(dim=-1, keepdim=True))
    np.testing.assert_allclose(reward.score(images(5), [""] * 5), expected, rtol=0, atol=1e-5)


def test_v25s_score_is_a_tenth_of_the_head_of_siglips_pooled_unit_embedding(tmp_path: Path) -> None:
    model = save_siglip(tmp_path / "siglip")
    layers = write_head(tmp_path / V25_HEAD, prefix="scoring_head", indices=(0, 2, 4, 6, 8), width=32)
    reward = load_aesthetic_v25(tmp_path)
    with torch.inference_mode():
        embedding = model.vision_model(pixel_values=reward.preprocess(images(5))).pooler_output
        expected = affine(layers, embedding / embedding.norm(dim=-1, keepdim=True)) / 10
    np.testing.assert_allclose(reward.score(images(5), [""] * 5), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["laion-aesthetic", "aesthetic-v2.5"])
def test_a_row_depends_neither_on_its_batch_nor_on_its_text(
    name: str, laion_folder: Path, v25_folder: Path
) -> None:
    reward = build_reward(name, path=laion_folder if name == "laion-aesthetic" else v25_folder)
    pictures = images(36)
    together = reward.score(pictures, ["a cat"] * 36)
    assert np.ptp(together) > 1e-4, "the network must tell them apart"
    for size in (1, 3, 8, 11, 23):
        parts = [
            reward.score(pictures[start : start + size], ["words"] * len(pictures[start : start + size]))
            for start in range(0, 36, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), together)
    assert not any(text.truncated for text in reward.encode_text(["word " * 500]))


def test_a_missing_head_or_encoder_is_named(laion_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"clip: expected config\.json"):
        load_laion_aesthetic(tmp_path)
    save_clip(tmp_path / "clip", tokenizer=False)
    with pytest.raises(CheckpointError, match=r"linearMSE\.pth: no such file"):
        load_laion_aesthetic(tmp_path)
    with pytest.raises(CheckpointError, match=r"siglip: expected config\.json"):
        load_aesthetic_v25(laion_folder)


@pytest.mark.parametrize(
    ("indices", "prefix", "width", "message"),
    [
        ((0, 3, 6, 9, 11), "layers", 24, r"expected exactly the keys \['layers\.0\.bias'"),
        ((0, 2, 4, 6, 7), "scoring_head", 24, "expected exactly the keys"),
        ((0, 2, 4, 6, 7), "layers", 25, r"layers\.0\.weight \(expected \(1024, 24\), got \(1024, 25\)\)"),
    ],
)
def test_another_head_is_refused(
    tmp_path: Path, indices: tuple[int, ...], prefix: str, width: int, message: str
) -> None:
    """The predictor with ReLUs has its layers at other places; taking it for a linear one would be silent."""
    save_clip(tmp_path / "clip", tokenizer=False)
    write_head(tmp_path / LAION_HEAD, prefix=prefix, indices=indices, width=width)
    with pytest.raises(CheckpointError, match=message):
        load_laion_aesthetic(tmp_path)


def test_an_activations_last_values_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    """SigLIP's MLP: 729 x 4304 values an image fill no whole number of kernel steps; nor do these, 9 x 33."""
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=33,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=42,
        patch_size=14,
    )
    torch.manual_seed(6)
    model = SiglipVisionModel(config)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "siglip")
    write_head(tmp_path / V25_HEAD, prefix="scoring_head", indices=(0, 2, 4, 6, 8), width=32)
    reward = load_aesthetic_v25(tmp_path)
    reward.batch_rows = 200
    assert reward.cpu_rows == 64
    pictures = images(130)
    together = reward.score(pictures, [""] * 130)
    for size in (1, 2, 13, 64, 129):
        starts = range(0, 130, size)
        parts = [reward.score(part, [""] * len(part)) for part in (pictures[s : s + size] for s in starts)]
        np.testing.assert_array_equal(np.concatenate(parts), together)
