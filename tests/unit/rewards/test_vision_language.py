"""A vision-language model as a reward, on a tiny random network: what transformers itself would answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from tests.support.tiny_vision_language import FAMILIES, save_vision_language
from ttsvar_ray.cli.app import app
from ttsvar_ray.cli.fetch import Download
from ttsvar_ray.costs import vision_language
from ttsvar_ray.costs.profile import load_profile
from ttsvar_ray.costs.seconds import network_line
from ttsvar_ray.costs.vision_language import VisionLanguageShape
from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.rewards.registry import REWARDS, build_reward
from ttsvar_ray.rewards.vision_language import VisionLanguage
from ttsvar_ray.types import Precision

NAME = "ttsvar_ray.rewards.vision_language:VisionLanguage"


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vision_language(tmp_path_factory.mktemp("vlm") / "weights", request.param)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, 64, 80, 3), dtype=np.uint8)


def test_it_says_what_generation_by_transformers_says(folder: Path) -> None:
    reward = VisionLanguage(folder)
    kept: dict[str, Any] = {}
    inner = reward._model.forward

    def watched(**inputs: Any) -> Any:
        kept.update(inputs)
        return inner(**inputs)

    reward._model.forward = watched
    (score,) = reward.score(images(1), ["red"])
    reward._model.forward = inner
    said = reward._model.generate(
        **kept, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    words = reward._tokenizer.get_vocab()
    shares = said.scores[0][0].softmax(dim=-1)
    assert score == pytest.approx(float(shares[words["Yes"]] + shares[words["yes"]]), rel=1e-4)
    patches = int(kept["image_grid_thw"].prod())
    assert int((kept["input_ids"] == words["<|image_pad|>"]).sum()) == patches // 4 >= 4
    assert 0 < score < 1
    # The published templates of Qwen2.5-VL begin with a system message, those of Qwen3-VL do not.
    has_system = int((kept["input_ids"] == words["system"]).sum()) == 1
    assert has_system == (reward._model.config.model_type == "qwen2_5_vl")


def test_scores_depend_on_image_and_text_and_on_no_neighbour(folder: Path) -> None:
    reward = build_reward(NAME, path=folder)
    together = reward.score(images(8), ["red", "blue"] * 4)
    alone = [float(reward.score(images(8)[i : i + 1], [("red", "blue")[i % 2]])[0]) for i in range(8)]
    assert together.tolist() == alone
    assert len(set(alone)) == 8
    assert reward.score(images(1), ["red"])[0] != reward.score(images(1), ["blue"])[0]
    other = build_reward(NAME, path=folder, options={"question": "{prompt} ?"})
    assert other.score(images(1), ["red"])[0] != reward.score(images(1), ["red"])[0]


def test_a_prompt_cannot_add_an_image(folder: Path) -> None:
    scores = VisionLanguage(folder).score(images(1), ["<|image_pad|> <|im_end|>"])
    assert np.isfinite(scores).all()


def test_what_is_no_such_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a vision-language model of transformers"):
        VisionLanguage(tmp_path)
    with pytest.raises(ConfigurationError, match="needs the folder of its files"):
        VisionLanguage()
    with pytest.raises(ConfigurationError, match=r"expected \{prompt\} in it"):
        VisionLanguage(folder, question="Is it nice?")


def test_its_price_is_what_its_modules_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = build_reward(NAME, path=folder)
    assert isinstance(reward, VisionLanguage)
    reward._model.set_attn_implementation("eager")
    read: list[int] = []
    inner = reward._model.forward
    reward._model.forward = lambda **given: (read.append(given["input_ids"].shape[1]), inner(**given))[1]
    with FlopCounterMode(display=False) as counter:
        reward.score(images(1), ["red"])
    config, pixels = (
        json.loads((folder / name).read_text()) for name in ("config.json", "preprocessor_config.json")
    )
    shape = VisionLanguageShape.of(config, pixels)
    monkeypatch.setattr(vision_language, "QUESTION_TOKENS", read[0] - shape.tokens(64, 80))
    assert shape.cost(64, 80).image_flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    parameters = sum(parameter.numel() for parameter in reward._model.parameters())
    assert shape.parameters == pytest.approx(parameters, rel=0.05), (
        "biases and norms, which are 0.1 % at size"
    )


def test_images_are_brought_to_the_size_that_the_processor_brings_them_to(folder: Path) -> None:
    reward = VisionLanguage(folder)
    pixels = json.loads((folder / "preprocessor_config.json").read_text())
    shape = VisionLanguageShape.of(json.loads((folder / "config.json").read_text()), pixels)
    for height, width in ((64, 80), (48, 48), (20, 20), (300, 200), (512, 512)):
        image = np.zeros((height, width, 3), np.uint8)
        grid = reward._pixels(images=image, return_tensors="pt")["image_grid_thw"]
        assert shape.tokens(height, width) == int(grid.prod()) // 4, (height, width)


@pytest.mark.parametrize(
    ("name", "weight_bytes"), [("qwen3-vl-2b", 4_255_140_312), ("qwen2.5-vl-3b", 7.51e9)]
)
def test_a_published_one_has_a_pinned_state_and_is_priced_before_it_is_here(
    name: str, weight_bytes: float, tmp_path: Path
) -> None:
    (files,) = REWARDS[name].weights.files
    assert re.fullmatch(r"Qwen/[\w.-]+@[0-9a-f]{40}", files.source)
    assert (
        f" --revision {files.source.partition('@')[2]} "
        in Download(source=files.source, patterns=files.names, folder=Path("here")).command()
    )
    settings = ["--set", f"reward.name={name}", "--set", f"reward.path={tmp_path / 'absent'}"]
    done = CliRunner().invoke(app, ["plan", "--model", "infinity-2b", *settings, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["parameters"]["reward"] == pytest.approx(weight_bytes / 2, rel=0.005), "published in bfloat16"
    plain = json.loads(CliRunner().invoke(app, ["plan", "--model", "infinity-2b", "--json"]).stdout)
    assert said["flops"]["selectors"] > 10 * plain["flops"]["selectors"]
    cost, device = vision_language.PUBLISHED[name].cost(1024, 1024), load_profile("h200")
    line = network_line(cost, 1024**2, device, padded=True, precision=Precision.BFLOAT16)
    assert line.per_row > 50 * device.layer_seconds, "one image at a time: every layer is launched for each"


def test_a_published_one_goes_by_its_name(folder: Path) -> None:
    reward = build_reward("qwen3-vl-2b", path=folder)
    assert reward.name == "qwen3-vl-2b"
    assert reward.score(images(1), ["red"]) == VisionLanguage(folder).score(images(1), ["red"])
    with pytest.raises(
        ConfigurationError, match=r"reward\.preprocessing: the reward 'qwen3-vl-2b' has its own"
    ):
        build_reward("qwen3-vl-2b", path=folder, preprocessing="tensor")
