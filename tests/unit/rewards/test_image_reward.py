"""ImageReward against the official implementation, and its promises about batches, files and errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.recorded import recorded_rewards
from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.rewards.blip import (
    IMAGE_REWARD_KEYS,
    PUBLISHED_IMAGE_REWARD,
    BlipRewardConfig,
    BlipRewardNetwork,
    TextSize,
    VisionSize,
)
from ttsvar_ray.rewards.image_reward import (
    ImageReward,
    load_image_reward,
    load_tokenizer,
    read_image_reward,
    tokenize,
)
from ttsvar_ray.rewards.registry import build_reward
from ttsvar_ray.vision.checkpoints import rename_keys

DATA = recorded_rewards()
REFERENCE = json.loads((DATA / "imagereward" / "ref.json").read_text())

REDUCED = replace(
    PUBLISHED_IMAGE_REWARD,
    vision=VisionSize(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=16,
    ),
    text=TextSize(
        vocab_size=114,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
    ),
)


@pytest.fixture(scope="module")
def published_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: published weights, vocabulary, and the sizes, which are reduced ones."""
    folder = tmp_path_factory.mktemp("image-reward")
    for name in ("ImageReward.pt", "vocab.txt"):
        (folder / name).write_bytes((DATA / "imagereward" / name).read_bytes())
    (folder / "config.json").write_text(json.dumps(REDUCED.to_json()))
    return folder


@pytest.fixture(scope="module")
def reward(published_folder: Path) -> ImageReward:
    return load_image_reward(published_folder)


def reference_images() -> list[np.ndarray]:
    return [np.asarray(Image.open(DATA / "images" / name).convert("RGB")) for name in REFERENCE["images"]]


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 70, 90, 3), dtype=np.uint8)


def test_scores_equal_the_official_ones(reward: ImageReward) -> None:
    scores = [
        [reward.score(image[None], [prompt])[0] for image in reference_images()]
        for prompt in REFERENCE["prompts"]
    ]
    np.testing.assert_allclose(scores, REFERENCE["score"], rtol=0, atol=1e-5)


def test_token_ids_equal_the_official_ones(reward: ImageReward) -> None:
    ids, mask = tokenize(reward.tokenizer, REFERENCE["prompts"], 35)
    assert ids.tolist() == REFERENCE["input_ids"]
    assert mask.tolist() == REFERENCE["attention_mask"]


def test_a_row_does_not_depend_on_its_batch(reward: ImageReward) -> None:
    images = random_images(36)
    texts = [REFERENCE["prompts"][row % 3] for row in range(36)]
    together = reward.score(images, texts)
    # Odd sizes leave rows over in every block that a kernel works in.
    for size in (1, 3, 8, 10, 11, 15, 23, 31):
        parts = [
            reward.score(images[start : start + size], texts[start : start + size])
            for start in range(0, 36, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), together)


def test_own_directory_gives_the_same_scores(reward: ImageReward, tmp_path: Path) -> None:
    reward.save(tmp_path)
    again = build_reward("image-reward", path=tmp_path)
    images = random_images(4)
    texts = [*REFERENCE["prompts"], "words, unknown words"]
    np.testing.assert_array_equal(again.score(images, texts), reward.score(images, texts))
    assert again.name == "image-reward"


def test_every_published_key_is_mapped_or_dropped_on_purpose() -> None:
    raw = torch.load(DATA / "imagereward" / "ImageReward.pt", weights_only=True)
    own = set(BlipRewardNetwork(REDUCED).state_dict())
    assert set(rename_keys(raw, IMAGE_REWARD_KEYS, source="here")) == own
    dropped = [key for key in raw if not rename_keys({key: raw[key]}, IMAGE_REWARD_KEYS, source="here")]
    assert set(dropped) == {
        "blip.text_encoder.embeddings.position_ids",
        "blip.vision_proj.weight",
        "blip.vision_proj.bias",
        "blip.text_proj.weight",
        "blip.text_proj.bias",
    }
    with pytest.raises(CheckpointError, match=r"unknown key 'blip\.surprise'"):
        rename_keys({"blip.surprise": torch.zeros(1)}, IMAGE_REWARD_KEYS, source="here")


def test_all_misfits_are_listed_at_once(published_folder: Path) -> None:
    weights = read_image_reward(published_folder / "ImageReward.pt")
    del weights["vision.post_layernorm.bias"]
    weights["extra"] = torch.zeros(2)
    weights["mlp.layers.7.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        ImageReward(config=REDUCED, weights=weights, tokenizer=load_tokenizer(published_folder))
    message = str(caught.value)
    assert "1 missing: vision.post_layernorm.bias" in message
    assert "1 unexpected: extra" in message
    assert "mlp.layers.7.bias (expected (1,), got (3,))" in message


def test_the_published_size_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        network = BlipRewardNetwork(PUBLISHED_IMAGE_REWARD)
    dropped_contrastive_heads = 1024 * 256 + 256 + 768 * 256 + 256
    count = sum(value.numel() for value in network.state_dict().values())
    assert round((count + dropped_contrastive_heads) / 1e6, 1) == 446.7


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"expected model\.safetensors with config\.json, or the published ImageReward\.pt"),
        (
            {"ImageReward.pt": b"", "config.json": b'{"kind": "other"}'},
            "kind: expected 'blip-reward', got 'other'",
        ),
    ],
)
def test_a_wrong_folder_says_what_is_missing(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    if "ImageReward.pt" in files:
        torch.save({}, tmp_path / "ImageReward.pt")
    with pytest.raises((CheckpointError, ConfigurationError), match=message):
        load_image_reward(tmp_path)


def test_an_unknown_config_key_is_named() -> None:
    content = {**REDUCED.to_json(), "heads": 3}
    with pytest.raises(ConfigurationError, match=r"here: .*heads.*expected the keys name, vision"):
        BlipRewardConfig.from_json(content, where="here")


def test_config_problems_come_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        replace(REDUCED, head_widths=(8, 2), score_std=0.0, max_text_tokens=99)
    assert len(caught.value.problems) == 3


def test_score_refuses_what_is_no_image_batch(reward: ImageReward) -> None:
    with pytest.raises(ValueError, match="one per image"):
        reward.score(random_images(2), ["one"])
    with pytest.raises(ValueError, match="uint8"):
        reward.score(random_images(1).astype(np.float32), ["one"])
    assert reward.score(random_images(0), []).shape == (0,)


def test_registry_names_what_exists() -> None:
    with pytest.raises(
        ConfigurationError, match=r"expected one of image-reward, hps-v2\.1, .*constant, got 'hps'"
    ):
        build_reward("hps")
    with pytest.raises(ConfigurationError, match=r"reward\.path"):
        build_reward("shapes")
    with pytest.raises(ConfigurationError, match="reads no files"):
        build_reward("constant", path="somewhere")
    assert build_reward("constant").score(random_images(3), ["a", "b", "c"]).tolist() == [0.0, 0.0, 0.0]
