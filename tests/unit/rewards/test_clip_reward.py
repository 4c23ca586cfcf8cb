"""Rewards of CLIP: both kinds of files, what a score is, and that no row depends on its batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from tests.support.recorded import recorded_rewards
from tests.support.tiny_clip import TOKENS, save_clip
from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.rewards.clip import (
    OPEN_CLIP_KEYS,
    VIT_H_14,
    TextCleaning,
    load_open_clip,
    load_tokenizer,
    read_sizes,
)
from ttsvar_ray.rewards.clip_reward import ClipReward
from ttsvar_ray.rewards.registry import REWARDS, build_reward
from ttsvar_ray.vision.checkpoints import rename_keys

HPS_FILES = {name: REWARDS[name].settings["file"] for name in ("hps-v2.0", "hps-v2.1")}
TEXTS = ["a red bus", "two cats on a table", "an oil painting of a dog &amp; a cat"]


def convert(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return rename_keys(weights, OPEN_CLIP_KEYS, source="here")


def load_clip_score(folder: Path) -> ClipReward:
    return cast(ClipReward, build_reward("clip-score", path=folder))


def load_pick_score(folder: Path) -> ClipReward:
    return cast(ClipReward, build_reward("pick-score", path=folder))


def images(count: int, height: int = 40, width: int = 52) -> np.ndarray:
    return np.random.default_rng(8).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def hps_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it, but reduced: the weights, open_clip's model file, CLIP's tokenizer."""
    folder = tmp_path_factory.mktemp("hps")
    shutil.copytree(recorded_rewards() / "hpsv21", folder, dirs_exist_ok=True)
    shutil.copytree(TOKENS, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def hps(hps_folder: Path) -> ClipReward:
    return cast(ClipReward, build_reward("hps-v2.1", path=hps_folder))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


def test_recorded_scores_come_from_texts_and_images_alone(hps: ClipReward) -> None:
    from PIL import Image

    recorded = json.loads((recorded_rewards() / "hpsv21" / "ref.json").read_text())
    for row, prompt in enumerate(recorded["prompts"]):
        for column, name in enumerate(recorded["images"]):
            picture = np.asarray(Image.open(recorded_rewards() / "images" / name).convert("RGB"))
            score = hps.score(picture[None], [prompt])[0]
            assert score == pytest.approx(recorded["score"][row][column], abs=2e-6)
    assert [text.truncated for text in hps.encode_text(recorded["prompts"])] == [False, False, True]


def test_both_versions_read_their_own_file(hps_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(hps_folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match=r"HPS_v2_compressed\.pt: no such file"):
        build_reward("hps-v2.0", path=tmp_path)
    (tmp_path / HPS_FILES["hps-v2.1"]).rename(tmp_path / HPS_FILES["hps-v2.0"])
    assert build_reward("hps-v2.0", path=tmp_path).name == "hps-v2.0"


def test_every_open_clip_key_is_used_once(hps_folder: Path) -> None:
    raw = torch.load(hps_folder / HPS_FILES["hps-v2.1"], weights_only=True)["state_dict"]
    converted = convert(raw)
    thirds = sum("in_proj" in key for key in raw)
    assert len(converted) == len(raw) + 2 * thirds
    assert sum(value.numel() for value in converted.values()) == sum(value.numel() for value in raw.values())
    with pytest.raises(CheckpointError, match=r"unknown key 'visual\.surprise'"):
        convert({**raw, "visual.surprise": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="unknown key"):
        convert({"transformer.resblocks.0.surprise": torch.zeros(1)})


def test_weights_that_do_not_fit_are_named(hps_folder: Path, tmp_path: Path) -> None:
    raw = torch.load(hps_folder / HPS_FILES["hps-v2.1"], weights_only=True)["state_dict"]
    del raw["ln_final.bias"]
    raw["visual.ln_post.bias"] = torch.zeros(3)
    torch.save({"state_dict": raw}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError) as caught:
        load_open_clip(tmp_path / "weights.pt", read_sizes(hps_folder))
    assert "1 missing: text_model.final_layer_norm.bias;" in str(caught.value)
    assert "vision_model.post_layernorm.bias (expected (80,), got (3,))" in str(caught.value)
    torch.save(raw, tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match="under the key 'state_dict'"):
        load_open_clip(tmp_path / "bare.pt", read_sizes(hps_folder))


def test_the_published_size_has_the_published_number_of_weights(tmp_path: Path) -> None:
    from transformers import CLIPModel

    assert read_sizes(tmp_path) == VIT_H_14
    with torch.device("meta"):
        model = CLIPModel(VIT_H_14.transformers())
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e6, 1) == 986.1


def test_a_model_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "ViT-X.json").write_text('{"embed_dim": 4, "vision_cfg": {}, "text_cfg": {}}')
    with pytest.raises(
        CheckpointError, match="expected an open_clip model file; missing or wrong: 'image_size'"
    ):
        read_sizes(tmp_path)
    (tmp_path / "ViT-Y.json").write_text("{}")
    with pytest.raises(CheckpointError, match="at most one"):
        read_sizes(tmp_path)


def test_the_clip_score_is_the_plain_cosine_of_transformers_clip(clip_folder: Path) -> None:
    reward = load_clip_score(clip_folder)
    pixels = reward.preprocess(images(3))
    tokens = load_tokenizer(clip_folder, TextCleaning.CLIP)
    ids = torch.tensor([tokens.encode(text)[0] for text in TEXTS])
    with torch.inference_mode():
        logits = reward.model(input_ids=ids, pixel_values=pixels).logits_per_image
    expected = (logits / reward.model.logit_scale.exp()).diagonal()
    np.testing.assert_allclose(reward.score(images(3), TEXTS), expected, rtol=0, atol=1e-6)
    assert np.ptp(reward.score(images(3), TEXTS)) > 1e-3, "the network must tell them apart"


def test_the_activation_is_the_directorys_own(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    for tower in ("vision_config", "text_config"):
        assert config[tower]["hidden_act"] == "quick_gelu"
        config[tower]["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    quick, plain = load_clip_score(clip_folder), load_clip_score(tmp_path)
    assert np.abs(quick.score(images(3), TEXTS) - plain.score(images(3), TEXTS)).max() > 1e-4


def test_pick_score_is_scaled_and_reads_texts_as_transformers_does(clip_folder: Path) -> None:
    pick, cosine = load_pick_score(clip_folder), load_clip_score(clip_folder)
    square = images(2, 28, 28)
    np.testing.assert_allclose(
        pick.score(square, TEXTS[:2]), cosine.score(square, TEXTS[:2]) * np.exp(4.6), rtol=1e-5
    )
    assert pick.score(square[:1], TEXTS[2:])[0] != pytest.approx(
        cosine.score(square[:1], TEXTS[2:])[0] * np.exp(4.6)
    )


def test_old_configurations_find_the_end_token(clip_folder: Path, tmp_path: Path) -> None:
    """OpenAI's published config.json says end token 2, which transformers reads as "the highest id"."""
    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] == 49407
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(
        load_clip_score(clip_folder).score(images(3), TEXTS),
        load_clip_score(tmp_path).score(images(3), TEXTS),
    )


@pytest.mark.parametrize("size", [1, 3, 8, 10, 11, 15, 23])
def test_a_row_does_not_depend_on_its_batch(hps: ClipReward, clip_folder: Path, size: int) -> None:
    pictures = images(36, 30, 50)
    texts = [TEXTS[row % 3] for row in range(36)]
    for reward in (hps, load_clip_score(clip_folder)):
        together = reward.score(pictures, texts)
        fresh = type(reward)(
            name="fresh", model=reward.model, tokens=reward.tokens, recipe=reward.recipe, scale=reward.scale
        )
        parts = [
            fresh.score(pictures[start : start + size], texts[start : start + size])
            for start in range(0, 36, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), together)


def test_a_text_is_encoded_once(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = load_clip_score(clip_folder)
    calls: list[str] = []
    encode = reward.tokens.encode
    monkeypatch.setattr(reward.tokens, "encode", lambda text: (calls.append(text), encode(text))[1])
    reward.score(images(4), ["a cat", "a dog", "a cat", "a cat"])
    reward.score(images(2), ["a dog", "a cat"])
    assert sorted(calls) == ["a cat", "a dog"]


def test_directories_that_do_not_fit_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected config\.json and weights"):
        load_clip_score(tmp_path / "nowhere")
    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"do not fit .* missing: vision_model"):
        load_clip_score(tmp_path)
    config["vision_config"]["num_hidden_layers"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"do not fit .* unexpected: vision_model"):
        load_clip_score(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_clip_score(tmp_path)


def test_pickled_weights_are_read_without_running_code(clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    np.testing.assert_array_equal(
        load_clip_score(tmp_path).score(images(3), TEXTS),
        load_clip_score(clip_folder).score(images(3), TEXTS),
    )

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    torch.save({"state_dict": {"a": Trap()}}, tmp_path / "pytorch_model.bin")
    shutil.copyfile(tmp_path / "pytorch_model.bin", tmp_path / HPS_FILES["hps-v2.1"])
    for load in (lambda: load_clip_score(tmp_path), lambda: build_reward("hps-v2.1", path=tmp_path)):
        with pytest.raises(Exception, match=r"(?i)weights.only"):
            load()
    assert not (tmp_path / "sprung").exists()


def test_bfloat16_is_close(clip_folder: Path) -> None:
    narrow = build_reward("clip-score", path=clip_folder, dtype="bfloat16")
    wide = build_reward("clip-score", path=clip_folder)
    difference = np.abs(narrow.score(images(4), [TEXTS[0]] * 4) - wide.score(images(4), [TEXTS[0]] * 4))
    assert 0 < difference.max() < 0.05
