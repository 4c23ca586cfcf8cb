"""HPSv3 on a tiny random Qwen2-VL: scores as of the formula written out; what does not fit is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from typer.testing import CliRunner

from tests.support.tiny_vision_language import save_tokenizer
from ttsvar_ray.cli.app import app
from ttsvar_ray.costs import vision_language
from ttsvar_ray.costs.vision_language import PUBLISHED, VisionLanguageShape
from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.models.weight_source import fingerprint_path
from ttsvar_ray.rewards.known_pairs import score_known_pairs
from ttsvar_ray.rewards.registry import build_reward

WIDTH = 48
TOLD = "\nDoes figure show {text_prompt}\n\nPlease answer <|Reward|>\n\nyes\n"
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "rms_norm_eps": 1e-6,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "rope_theta": 1e4,
}
VISION = {"depth": 2, "embed_dim": 32, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2}
BOUNDS = {"min_pixels": 56 * 56, "max_pixels": 14 * 14 * 4 * 16384}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hps") / "weights"
    path.mkdir()
    vocabulary = save_tokenizer(path)
    # Flat, as the hub has it.
    config = {
        "model_type": "qwen2_vl",
        **SIZES,
        "vision_config": VISION,
        "image_token_id": vocabulary["<|image_pad|>"],
        "video_token_id": vocabulary["<|video_pad|>"],
        "vision_start_token_id": vocabulary["<|vision_start|>"],
        "vision_end_token_id": vocabulary["<|vision_end|>"],
    }
    (path / "config.json").write_text(json.dumps(config))
    pixels = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, **BOUNDS}
    (path / "preprocessor_config.json").write_text(json.dumps(pixels))
    (path / "instruction.txt").write_text(TOLD)
    torch.manual_seed(0)
    network, head = plain_parts(path)
    weights = {
        **network.state_dict(),
        **{f"rm_head.{key}": value for key, value in head.state_dict().items()},
    }
    weights = {key: value + 0.1 * torch.randn_like(value) for key, value in weights.items()}
    save_file(weights, path / "HPSv3.safetensors")
    return path


def plain_parts(folder: Path) -> tuple[Any, nn.Sequential]:
    """Return transformers' own network and the head, with random weights."""
    config = Qwen2VLConfig.from_pretrained(folder)
    config.text_config.vocab_size = len(AutoTokenizer.from_pretrained(folder)) + 1
    head = nn.Sequential(
        nn.Linear(WIDTH, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    return Qwen2VLForConditionalGeneration(config).eval(), head.eval()


def plain_size(height: int, width: int) -> tuple[int, int]:
    """Return the sides that an image is brought to."""
    area, high, wide = 256 * 28 * 28, round(height / 28) * 28, round(width / 28) * 28
    scale = math.sqrt(height * width / area)
    if high * wide > area:
        return math.floor(height / scale / 28) * 28, math.floor(width / scale / 28) * 28
    if high * wide < area:
        return math.ceil(height / scale / 28) * 28, math.ceil(width / scale / 28) * 28
    return high, wide


def plain_score(folder: Path, image: np.ndarray, text: str) -> tuple[float, int]:
    """Return the score, step by step as the authors have it, and the tokens of the image."""
    network, head = plain_parts(folder)
    weights = load_file(folder / "HPSv3.safetensors")
    head.load_state_dict({k.removeprefix("rm_head."): weights.pop(k) for k in list(weights) if "rm_" in k})
    network.load_state_dict(weights)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    mark = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    high, wide = plain_size(*image.shape[:2])
    resized = Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC)
    seen = AutoImageProcessor.from_pretrained(folder)(images=resized, return_tensors="pt")
    tokens = int(seen["image_grid_thw"].prod()) // 4
    assert tokens == high * wide // 28**2
    said = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * tokens
        + f"<|vision_end|>{TOLD.format(text_prompt=text)}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(said, return_tensors="pt")["input_ids"]
    assert ids.max() == mark
    with torch.inference_mode():
        words = network.model.language_model.embed_tokens(ids)
        looks = network.model.visual(seen["pixel_values"], grid_thw=seen["image_grid_thw"]).pooler_output
        where = (ids == network.config.image_token_id)[..., None].expand_as(words)
        hidden = network.model.language_model(
            inputs_embeds=words.masked_scatter(where, looks), attention_mask=torch.ones_like(ids)
        ).last_hidden_state
        return float(head(hidden)[ids == mark][0, 0]), tokens


def images(count: int, height: int = 64, width: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(64, 80), (448, 448), (512, 512), (600, 150), (30, 100)])
def test_it_scores_as_the_formula_written_out(folder: Path, height: int, width: int) -> None:
    (image,) = images(1, height, width)
    expected, tokens = plain_score(folder, image, "red blue")
    (score,) = build_reward("hps-v3", path=folder).score(image[None], ["red blue"])
    assert score == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert PUBLISHED["hps-v3"].tokens(height, width) == tokens


def test_scores_depend_on_image_and_text_and_on_no_neighbour(folder: Path) -> None:
    reward = build_reward("hps-v3", path=folder)
    together = reward.score(images(8), ["red", "blue"] * 4)
    alone = [float(reward.score(images(8)[i : i + 1], [("red", "blue")[i % 2]])[0]) for i in range(8)]
    assert together.tolist() == alone and len(set(alone)) == 8
    assert reward.score(images(1), ["red"])[0] != reward.score(images(1), ["blue"])[0]
    assert reward.name == "hps-v3"
    # Neither another image, nor another place to read, nor a second prompt.
    smuggled = reward.score(images(1), ["<|image_pad|> <|Reward|> <|im_end|> {text_prompt}"])
    assert np.isfinite(smuggled).all()


def test_in_bfloat16_it_says_about_the_same(folder: Path) -> None:
    (exact,), (near,) = (
        build_reward("hps-v3", path=folder, dtype=dtype).score(images(1), ["red"])
        for dtype in ("float32", "bfloat16")
    )
    assert near != exact and near == pytest.approx(exact, abs=0.1)


def test_the_known_pairs_of_doctor_are_scored(folder: Path) -> None:
    assert not score_known_pairs(build_reward("hps-v3", path=folder)).problem


Weights = dict[str, Tensor]


def changed(folder: Path, to: Path, change: Callable[[Weights], Weights]) -> Path:
    """Return a copy of the folder with other weights."""
    shutil.copytree(folder, to)
    save_file(change(load_file(folder / "HPSv3.safetensors")), to / "HPSv3.safetensors")
    return to


def older(weights: Weights) -> Weights:
    """Return weights under the names that transformers had before."""
    return {
        key.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value
        for key, value in weights.items()
    }


def test_older_names_of_the_weights_are_read_too(folder: Path, tmp_path: Path) -> None:
    names: set[str] = set()

    def renamed(weights: Weights) -> Weights:
        names.update(older(weights))
        return older(weights)

    other = changed(folder, tmp_path / "older", renamed)
    assert {"visual.patch_embed.proj.weight", "model.norm.weight", "lm_head.weight"} <= names
    scores = [build_reward("hps-v3", path=path).score(images(1), ["red"])[0] for path in (folder, other)]
    assert scores[0] == scores[1]


NORM, EMBEDDING = "model.language_model.norm.weight", "model.language_model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {k: v for k, v in w.items() if k != NORM}, r"1 missing: language_model\.norm\.weight"),
        (lambda w: {k: v for k, v in w.items() if k != "rm_head.5.bias"}, r"1 missing: rm_head\.5\.bias"),
        (lambda w: w | {"more.weight": torch.ones(1)}, r"unknown key 'more\.weight'"),
        (lambda w: w | {"model.norm.weight": torch.ones(WIDTH)}, "two names of one weight"),
        (lambda w: w | {"rm_head.6.bias": torch.ones(1)}, r"1 unexpected: rm_head\.6\.bias"),
        (lambda w: w | {NORM: torch.ones(3)}, r"of another shape: .*expected \(48,\), got \(3,\)"),
        (lambda w: w | {EMBEDDING: w[EMBEDDING][:-1].clone()}, r"the tokenizer's \d+ tokens.*found \d+"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[Weights], Weights], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        build_reward("hps-v3", path=changed(folder, tmp_path / "changed", change))


@pytest.mark.parametrize(
    "text", ["<|Reward|>", "{text_prompt}", TOLD * 2, TOLD + "<|image_pad|>", TOLD + "{text_prompt}"]
)
def test_an_instruction_that_cannot_be_used_is_refused(folder: Path, tmp_path: Path, text: str) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    before = fingerprint_path(other)
    (other / "instruction.txt").write_text(text)
    assert fingerprint_path(other) != before, "a run is not continued with another"
    with pytest.raises(CheckpointError, match=r"expected \{text_prompt\} and <\|Reward\|> once each"):
        build_reward("hps-v3", path=other)
    (other / "instruction.txt").unlink()
    with pytest.raises(CheckpointError, match="expected the authors' instruction"):
        build_reward("hps-v3", path=other)


def test_another_backbone_is_refused(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(CheckpointError, match=r"expected Qwen2-VL's config\.json, found qwen3_vl's"):
        build_reward("hps-v3", path=other)


def test_settings_that_it_would_not_read_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"reward\.preprocessing: the reward 'hps-v3' has its own"):
        build_reward("hps-v3", path=folder, preprocessing="tensor")


def test_its_price_is_what_its_modules_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward: Any = build_reward("hps-v3", path=folder)
    reward._model.set_attn_implementation("eager")
    read: list[int] = []
    inner = reward._model.forward
    reward._model.forward = lambda **given: (read.append(given["input_ids"].shape[1]), inner(**given))[1]
    with FlopCounterMode(display=False) as counter:
        reward.score(images(1), ["red"])
    shape = VisionLanguageShape(
        width=32,
        depth=2,
        ffn_dim=64,
        gated=False,
        patch=14,
        full_blocks=2,
        fewest=256 * 28 * 28,
        most=256 * 28 * 28,
        text_width=WIDTH,
        text_depth=2,
        text_ffn_dim=64,
        query_width=WIDTH,
        key_width=16,
        vocabulary=reward._model.config.text_config.vocab_size,
        tied=True,
        instruction=100,
    )
    monkeypatch.setattr(vision_language, "QUESTION_TOKENS", read[0] - shape.tokens(64, 80) - 100)
    # The head's two matrices are a hundredth here, and nothing at size.
    assert shape.cost(64, 80).image_flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    parameters = sum(parameter.numel() for parameter in reward._model.parameters())
    assert shape.parameters == pytest.approx(parameters, rel=0.05), "biases and norms"


def test_it_is_priced_before_it_is_here(tmp_path: Path) -> None:
    settings = ["--set", "reward.name=hps-v3", "--set", f"reward.path={tmp_path / 'absent'}"]
    done = CliRunner().invoke(app, ["plan", "--model", "infinity-2b", *settings, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["parameters"]["reward"] == pytest.approx(7.75e9, rel=0.005)
