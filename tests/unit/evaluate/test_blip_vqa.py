"""BLIP-VQA as a judge: transformers' own generation, the authors' recorded answers, and T2I-CompBench's rule.

The recorded ones if $TTSVAR_GOLDEN_REWARDS names a full folder of them.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipForQuestionAnswering
from typer.testing import CliRunner

from tests.support.tiny_blip import IDS, save_blip
from ttsvar_ray.cli.app import app
from ttsvar_ray.errors import CheckpointError, ConfigurationError, InputError
from ttsvar_ray.evaluate.benchmarks import BENCHMARKS
from ttsvar_ray.evaluate.question_judge import FIRST_ID, BlipVqa
from ttsvar_ray.evaluate.questions import AnsweredImage
from ttsvar_ray.vision.pixels import Fit, PixelRecipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip(tmp_path_factory.mktemp("blip") / "tiny-blip")


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 40, 40, 3), dtype=np.uint8)


def test_it_says_what_generation_by_transformers_says(folder: Path) -> None:
    judge = BlipVqa(folder)
    (image,) = images(1)
    answers = judge.probabilities(image, [("a red bus?", ("yes", "no")), ("the cat?", ("yes", "no"))])
    network = BlipForQuestionAnswering.from_pretrained(folder).eval()
    ids = torch.tensor([[FIRST_ID, IDS["a"], IDS["red"], IDS["bus"], IDS["?"], IDS["[SEP]"]]])
    pixels = PixelRecipe(size=32, fit=Fit.STRETCH).apply(image[None], torch.device("cpu"))
    said = network.generate(
        input_ids=ids,
        pixel_values=pixels,
        max_new_tokens=1,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    shares = said.logits[0][0].softmax(dim=-1)
    assert answers[0] == pytest.approx([float(shares[IDS["yes"]]), float(shares[IDS["no"]])], rel=1e-4)
    assert answers[0] != answers[1]
    assert judge.probabilities(image, [("the cat?", ("yes", "no"))]) == [answers[1]], "whatever else is asked"


def test_what_is_no_such_model_or_answer_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a BLIP that answers questions"):
        BlipVqa(tmp_path)
    with pytest.raises(ConfigurationError, match="'zebra' as one word"):
        BlipVqa(folder).tokens_of("zebra")


LINES = [
    {"prompt": "a red bus and the cat", "category": "color", "chunks": ["a red bus", "the cat"]},
    {"prompt": "a wooden table", "category": "texture", "chunks": ["a wooden table"]},
]


def test_t2i_compbench_multiplies_the_yes_of_its_chunks(folder: Path, tmp_path: Path) -> None:
    benchmark = BENCHMARKS["t2i-compbench"]
    questions = tmp_path / "chunks.jsonl"
    questions.write_text("\n".join(map(json.dumps, LINES)))
    both, one = benchmark.read(questions)
    told = [
        AnsweredImage(prompt=both, probabilities=[[0.3, 0.1], [0.2, 0.2]]),
        AnsweredImage(prompt=one, probabilities=[[0.6, 0.2]]),
    ]
    scores = {score.name: score.mean for score in benchmark.summary(told)}
    assert scores == pytest.approx({"BLIP-VQA": (0.375 + 0.75) / 2, "color": 0.375, "texture": 0.75})
    (tmp_path / "samples").mkdir()
    for number, line in enumerate([*LINES, LINES[0]]):
        Image.fromarray(images(3)[number]).save(tmp_path / "samples" / f"{line['prompt']}_{number:06d}.png")
    out = tmp_path / "result.json"
    command = ["evaluate", "t2i-compbench", str(tmp_path / "samples"), "--questions", str(questions)]
    done = CliRunner().invoke(app, [*command, "--judge", str(folder), "--device", "cpu", "--json", str(out)])
    assert done.exit_code == 0, done.output
    content = json.loads(out.read_text())
    assert [(score["name"], score["images"]) for score in content["scores"]] == [
        ("BLIP-VQA", 3),
        ("color", 2),
        ("texture", 1),
    ]
    assert "1 to 2 images a prompt, where published scores have 10" in content["notes"]
    questions.write_text(json.dumps({**LINES[0], "chunks": []}))
    with pytest.raises(InputError, match=r"line 1: expected prompt, category and one to 8 chunks"):
        benchmark.read(questions)


@pytest.mark.skipif(
    "TTSVAR_GOLDEN_REWARDS" not in os.environ, reason="set TTSVAR_GOLDEN_REWARDS to a full recorded folder"
)
def test_the_authors_answers_are_those_of_this_judge(tmp_path: Path) -> None:
    recorded = Path(os.environ["TTSVAR_GOLDEN_REWARDS"])
    reference = json.loads((recorded / "blip_vqa" / "ref.json").read_text())
    theirs = torch.load(recorded / "blip_vqa" / "blip_vqa.pth", weights_only=True)
    weights = {_named(key): value.float() for key, value in theirs.items() if "position_ids" not in key}
    judge = BlipVqa(save_blip(tmp_path / "blip", size=480, weights=weights))
    asked = [(question, ("yes", "no")) for question in reference["questions"]]
    for name, row in zip(reference["images"], reference["prob_yes"], strict=True):
        with Image.open(recorded / "images" / name) as image:
            answers = judge.probabilities(np.asarray(image.convert("RGB")), asked)
        assert [yes / (yes + no) for yes, no in answers] == pytest.approx(row, abs=2e-6)


def _named(key: str) -> str:
    """Return transformers' name of a tensor of the authors'."""
    if not key.startswith("visual_encoder."):
        return key
    key = re.sub(r"^visual_encoder\.blocks", "vision_model.encoder.layers", key)
    for theirs, ours in (
        ("visual_encoder.norm", "vision_model.post_layernorm"),
        ("visual_encoder.patch_embed.proj", "vision_model.embeddings.patch_embedding"),
        ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
        ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
        (".attn.proj", ".self_attn.projection"),
        (".attn.", ".self_attn."),
        (".norm", ".layer_norm"),
    ):
        key = key.replace(theirs, ours)
    return key
