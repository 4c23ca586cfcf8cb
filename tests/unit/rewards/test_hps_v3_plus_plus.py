"""HPSv3++ on a tiny random Qwen3-VL: scores as of the formula written out; what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from typer.testing import CliRunner

from tests.support.tiny_vision_language import save_vision_language
from ttsvar_ray.cli.app import app
from ttsvar_ray.costs.vision_language import PUBLISHED
from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.rewards.known_pairs import score_known_pairs
from ttsvar_ray.rewards.registry import build_reward

NAME = "hps-v3-plus-plus"
WIDTH = 32
TOLD = "\nDoes figure show {text_prompt}\n\nPlease answer <|Reward|>\n\nyes\n"
HEADS: dict[str, nn.Module] = {
    "rm_head": nn.Sequential(
        nn.Linear(WIDTH, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    ).eval(),
    "cond_encoder": nn.Sequential(nn.Linear(2, 256), nn.GELU(), nn.Linear(256, 256)),
    "film_gen": nn.Sequential(nn.Linear(256, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2 * WIDTH)),
    "cap_encoder.proj": nn.Linear(WIDTH, 256),
    "cap_encoder.pool_attn": nn.Linear(256, 1),
    "cap_encoder.out_proj": nn.Linear(256, 1),
}


def plain_network(folder: Path) -> Any:
    """Return transformers' own network with random weights, of one token more than the tokenizer has."""
    config = Qwen3VLConfig.from_pretrained(folder)
    config.text_config.vocab_size = len(AutoTokenizer.from_pretrained(folder)) + 1
    return Qwen3VLForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_vision_language(tmp_path_factory.mktemp("hps") / "weights")
    (path / "model.safetensors").unlink()
    pixels = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").write_text(
        json.dumps({**pixels, "min_pixels": 256 * 256, "max_pixels": 4096 * 4096})
    )
    (path / "instruction.txt").write_text(TOLD)
    torch.manual_seed(0)
    weights = plain_network(path).state_dict()
    for name, module in HEADS.items():
        weights |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    weights = {key: value + 0.1 * torch.randn_like(value) for key, value in weights.items()}
    torch.save(weights, path / "hpsv3++.pth")
    return path


def plain_score(folder: Path, image: np.ndarray, text: str, sides: tuple[int, int]) -> float:
    """Return the score, step by step as the authors have it for one image."""
    weights = torch.load(folder / "hpsv3++.pth", weights_only=True)
    heads = {}
    for name, module in HEADS.items():
        keys = [key for key in weights if key.startswith(f"{name}.")]
        module.load_state_dict({key.removeprefix(f"{name}."): weights.pop(key) for key in keys})
        heads[name] = module
    network = plain_network(folder)
    network.load_state_dict(weights)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    mark = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    high, wide = sides
    resized = Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC)
    seen = AutoImageProcessor.from_pretrained(folder)(images=resized, return_tensors="pt")
    tokens = int(seen["image_grid_thw"].prod()) // 4
    said = (
        "<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * tokens
        + f"<|vision_end|>{TOLD.format(text_prompt=text)}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(said, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        hidden = network.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == network.config.image_token_id).long(),
            **seen,
        )[0]
        read = hidden[ids == mark]
        group = heads["cap_encoder.proj"](read)
        group = (group * torch.softmax(heads["cap_encoder.pool_attn"](group), dim=0)).sum(dim=0)
        capability = torch.sigmoid(heads["cap_encoder.out_proj"](group))
        condition = heads["cond_encoder"](torch.stack([capability, torch.zeros(1)], dim=-1))
        scale, shift = heads["film_gen"](condition).chunk(2, dim=-1)
        return float(heads["rm_head"](read * (1.0 + scale) + shift)[0, 0])


def images(count: int, height: int = 64, width: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


# The sides are those of the authors' rounding to multiples of 28, worked out by hand.
@pytest.mark.parametrize(
    ("height", "width", "sides"),
    [(1024, 1024, (448, 448)), (64, 80, (420, 504)), (600, 150, (896, 224)), (448, 448, (448, 448))],
)
def test_it_scores_as_the_formula_written_out(
    folder: Path, height: int, width: int, sides: tuple[int, int]
) -> None:
    (image,) = images(1, height, width)
    (score,) = build_reward(NAME, path=folder).score(image[None], ["red blue"])
    assert score == pytest.approx(plain_score(folder, image, "red blue", sides), rel=1e-4, abs=1e-5)


def test_scores_depend_on_image_and_text_and_on_no_neighbour(folder: Path) -> None:
    reward = build_reward(NAME, path=folder)
    together = reward.score(images(4), ["red", "blue"] * 2)
    alone = [float(reward.score(images(4)[i : i + 1], [("red", "blue")[i % 2]])[0]) for i in range(4)]
    assert together.tolist() == alone and len(set(alone)) == 4
    assert reward.score(images(1), ["red"])[0] != reward.score(images(1), ["blue"])[0]
    assert reward.name == NAME


def test_in_bfloat16_it_says_about_the_same(folder: Path) -> None:
    (exact,), (near,) = (
        build_reward(NAME, path=folder, dtype=dtype).score(images(1), ["red"])
        for dtype in ("float32", "bfloat16")
    )
    assert near != exact and near == pytest.approx(exact, abs=0.1)


def test_the_known_pairs_of_doctor_are_scored(folder: Path) -> None:
    assert not score_known_pairs(build_reward(NAME, path=folder)).problem


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "film_gen.2.bias"}, r"1 missing: film_gen\.2\.bias"),
        (lambda w: w | {"cap_encoder.more": torch.ones(1)}, r"1 unexpected: cap_encoder\.more"),
        (lambda w: w | {"rm_head.0.bias": torch.ones(3)}, r"of another shape: rm_head\.0\.bias"),
        (lambda w: w | {"more.weight": torch.ones(1)}, r"unknown key 'more\.weight'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "hpsv3++.pth").unlink()
    torch.save(change(torch.load(folder / "hpsv3++.pth", weights_only=True)), tmp_path / "hpsv3++.pth")
    with pytest.raises(CheckpointError, match=said):
        build_reward(NAME, path=tmp_path)


def test_without_its_files_or_on_another_backbone_it_says_so(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "hpsv3++.pth").unlink()
    with pytest.raises(
        CheckpointError, match=r"hpsv3\+\+\.pth: no such file; expected the published weights"
    ):
        build_reward(NAME, path=tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(CheckpointError, match=r"expected Qwen3-VL's config\.json, found qwen2_vl's"):
        build_reward(NAME, path=tmp_path)


@pytest.mark.parametrize("is_here", [False, True])
def test_it_is_priced_by_its_publication(folder: Path, tmp_path: Path, is_here: bool) -> None:
    path = folder if is_here else tmp_path / "absent"
    settings = ["--set", f"reward.name={NAME}", "--set", f"reward.path={path}"]
    done = CliRunner().invoke(app, ["plan", "--model", "infinity-2b", *settings, "--json"])
    assert done.exit_code == 0, done.output
    # 8.77 billion of Qwen3-VL-8B less its logits' 151,936 x 4,096.
    assert json.loads(done.stdout)["parameters"]["reward"] == pytest.approx(8.145e9, rel=0.005)
    assert PUBLISHED[NAME].tokens(1024, 1024) == 14 * 14
