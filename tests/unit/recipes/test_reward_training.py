"""The shapes reward's training: it learns, it resumes exactly, its export scores like the trained network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.shapes import reward_training
from recipes.shapes.reward_degrade import blur_and_noise
from recipes.shapes.reward_examples import sample_batch
from recipes.shapes.reward_losses import PATCH_OUTPUTS, caption_losses, patch_loss
from recipes.shapes.reward_network import reward_config
from recipes.shapes.reward_training import (
    RewardRecipe,
    RewardTrainer,
    export_reward,
    train_reward,
)
from ttsvar_ray.features.registry import build_extractor
from ttsvar_ray.rewards.registry import build_reward

SHORT = RewardRecipe(steps=3, batch=8, warmup=1, measure_images=20)


@pytest.fixture(scope="module", autouse=True)
def shallow() -> Iterator[None]:
    """One layer in each tower: Muon works in bfloat16, which older processors imitate slowly."""
    config = reward_config()
    config = replace(
        config,
        vision=replace(config.vision, num_hidden_layers=1),
        text=replace(config.text, num_hidden_layers=1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_training, "reward_config", lambda: config)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    assert train_reward(folder, recipe=SHORT)
    return folder


def test_sessions_make_no_difference(trained: Path, tmp_path: Path) -> None:
    sessions = 1
    while not train_reward(tmp_path, recipe=SHORT, budget_seconds=0.0):
        sessions += 1
    assert sessions == SHORT.steps
    whole, parts = (torch.load(folder / "reward.pt", weights_only=True) for folder in (trained, tmp_path))
    for part in ("trainer", "average"):
        for name, value in whole[part].items():
            assert torch.equal(value, parts[part][name]), name


def test_the_learning_curve_measures_every_kind(trained: Path) -> None:
    points = [json.loads(line) for line in (trained / "reward.jsonl").read_text().splitlines()]
    assert "pair" in points[0]
    assert {"clean_all", "degraded_all", "clean_position"} <= set(points[-1])


def test_the_export_scores_like_the_network_at_unit_scale(trained: Path, tmp_path: Path) -> None:
    export_reward(trained, tmp_path, degrade=blur_and_noise, calibration_images=100)
    reward = build_reward("shapes", path=tmp_path)
    assert reward.name == "shapes"
    assert (tmp_path / "model.safetensors").stat().st_size < 8e6
    trainer = RewardTrainer()
    trainer.load_state_dict(torch.load(trained / "reward.pt", weights_only=True)["average"])
    batch = sample_batch(np.random.default_rng(1), 12, 48)
    with torch.inference_mode():
        raw, _ = trainer(batch)
    config = json.loads((tmp_path / "config.json").read_text())
    expected = (raw[:, 0].numpy() - config["score_mean"]) / config["score_std"]
    scores = reward.score(batch.images, batch.texts[::4])
    # The network may be measured in bfloat16; the export computes in float32 from float16 weights.
    np.testing.assert_allclose(scores * config["score_std"], expected * config["score_std"], atol=0.05)

    extractor = build_extractor("pca", backbone=tmp_path)
    features = extractor.extract(batch.images)
    assert features.shape == (12, 64)
    np.testing.assert_array_equal(extractor.extract(batch.images[3:4]), features[3:4])
    assert build_extractor("pool", backbone=tmp_path).extract(batch.images).shape == (12, 128)


def test_the_command_takes_a_tokenizer_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    command = ["--work-dir", str(tmp_path), "--tokenizer", "shapes", "--budget-seconds", "0"]
    reward_training.main([*command, "--finished-alone"])
    assert (tmp_path / "tokenizer.pt").exists()
    assert "augmentation: TruncatedDecodes" in caplog.text
    assert "run the same command to go on" in caplog.text
    assert torch.load(tmp_path / "reward.pt", weights_only=True)["step"] == 1


def test_exporting_nothing_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the reward stage first"):
        export_reward(tmp_path, tmp_path / "out", degrade=blur_and_noise)


def test_the_network_learns_a_batch_by_heart() -> None:
    torch.manual_seed(0)
    trainer = RewardTrainer()
    batch = sample_batch(np.random.default_rng(2), 6, 48)
    optimizer = torch.optim.AdamW(trainer.parameters(), lr=1e-3)
    losses = []
    for _ in range(25):
        _, parts = trainer(batch)
        loss = parts.judge + parts.pair + 0.5 * parts.patch + 0.5 * parts.noun
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_caption_losses_reward_the_true_caption() -> None:
    good, bad = torch.tensor([[3.0, -3.0, -3.0]]), torch.tensor([[-3.0, 3.0, 3.0]])
    for small, large in zip(caption_losses(good), caption_losses(bad), strict=True):
        assert small < 0.06
        assert large > 3
    judge, pair = caption_losses(torch.zeros(2, 4))
    assert judge.item() == pytest.approx(np.log(2))
    assert pair.item() == pytest.approx(np.log(2))


def test_patch_loss_is_small_for_the_right_answer_only() -> None:
    batch = sample_batch(np.random.default_rng(3), 5, 48)
    grid = 8
    outputs = torch.zeros(5, grid * grid, PATCH_OUTPUTS)
    for image in range(5):
        for patch in range(grid * grid):
            center = (np.array([patch % grid, patch // grid]) + 0.5) / grid
            distance = np.hypot(*(batch.centers[image] - center).T) + 9 * (batch.shape_index[image] < 0)
            nearest = int(distance.argmin())
            inside = distance[nearest] < batch.radii[image, nearest] * 1.05
            outputs[image, patch, 0] = 12.0 if inside else -12.0
            outputs[image, patch, 1:3] = torch.from_numpy(batch.centers[image, nearest] - center)
            outputs[image, patch, 3 + batch.shape_index[image, nearest]] = 12.0
            outputs[image, patch, 8 + batch.color_index[image, nearest]] = 12.0
    assert patch_loss(outputs, batch, grid).item() < 0.01
    mirrored = replace(batch, centers=1 - batch.centers)
    assert patch_loss(outputs, mirrored, grid).item() > 1
