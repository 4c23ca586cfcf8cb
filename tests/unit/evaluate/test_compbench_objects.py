"""T2I-CompBench's relations and counts: the rules on boxes made by hand, and the command over a folder."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.support.tiny_mask2former import mmdet_weights, save_mmdet, tiny_mask2former
from ttsvar_ray.cli.app import app
from ttsvar_ray.errors import InputError
from ttsvar_ray.evaluate.compbench_objects import T2I_COMPBENCH_OBJECTS, Count, ObjectJudge, Relation
from ttsvar_ray.evaluate.detector import Detector
from ttsvar_ray.evaluate.geneval_rules import Detected
from ttsvar_ray.evaluate.judging import AskedImage
from ttsvar_ray.evaluate.questions import Question, QuestionPrompt

Boxes = Mapping[str, Sequence[tuple[Sequence[float], float]]]


def objects(boxes: Boxes) -> dict[str, list[Detected]]:
    return {
        name: [Detected(box=np.array(box, np.float32), score=np.float32(score)) for box, score in own]
        for name, own in boxes.items()
    }


def related(words: str, dog: Sequence[float], cat: Sequence[float]) -> float:
    """Return what the relation of two boxes adds to two objects of a score of 0.9, from 0 to 1."""
    asked = Relation(text="", objects=("dog", "cat"), relation=words)
    score = asked.score(objects({"dog": [(dog, 0.9)], "cat": [(cat, 0.9)]}))
    return (score - 0.45) / 0.5 if score else 0.0


HERE, RIGHT, BELOW = (0, 0, 10, 10), (40, 5, 50, 15), (5, 40, 15, 50)


@pytest.mark.parametrize(
    ("words", "dog", "cat", "expected"),
    [
        ("on the left of", HERE, RIGHT, 1),
        ("on the left of", RIGHT, HERE, 0),
        ("on the right of", RIGHT, HERE, 1),
        ("on the top of", HERE, BELOW, 1),
        ("on the top of", BELOW, HERE, 0),
        ("on the bottom of", BELOW, HERE, 1),
        ("on the left of", HERE, BELOW, 0),  # further below than right
        ("on the left of", HERE, (30, 30, 40, 40), 0),  # as far below as right
        ("on the left of", HERE, HERE, 0),
        ("on the left of", HERE, (5, 0, 15, 10), 0.1 / (50 / 150)),  # overlaps
        ("on the left of", HERE, (9, 0, 19, 10), 1),  # overlaps by less than a tenth
        ("next to", HERE, (149, 300, 159, 310), 1),  # near on one axis is near
        ("near", HERE, (150, 300, 160, 310), 0.5),
        ("on side of", HERE, (150, 150, 160, 160), 1.0),
    ],
)
def test_a_relation_of_two_boxes(
    words: str, dog: Sequence[float], cat: Sequence[float], expected: float
) -> None:
    assert related(words, dog, cat) == pytest.approx(expected, abs=1e-6)


def test_objects_without_their_relation_score_nothing() -> None:
    asked = Relation(text="", objects=("woman", "sofa"), relation="on the left of")
    assert asked.score(objects({"person": [(HERE, 0.9)], "couch": [(RIGHT, 0.7)]})) == pytest.approx(0.9)
    assert asked.score(objects({"person": [(HERE, 0.9)]})) == 0
    assert asked.score(objects({"person": [(RIGHT, 0.9)], "couch": [(HERE, 0.7)]})) == 0
    assert asked.score({}) == 0
    both = Relation(text="", objects=("girl", "boy"), relation="near")
    assert both.score(objects({"person": [(HERE, 0.8)]})) == pytest.approx(0.9), "the surest stands for both"


def test_an_object_counts_once_however_often_it_was_found() -> None:
    two = Count(text="", objects=("dog",), number=2)

    def found(*boxes: Sequence[float]) -> float:
        return two.score(objects({"dog": [(box, 0.9) for box in boxes]}))

    assert found(HERE, RIGHT) == 1
    assert found(HERE) == found(HERE, RIGHT, BELOW) == 0.5
    assert found() == two.score({}) == 0
    assert found(HERE, RIGHT, (0, 0, 10, 10.5)) == 1, "the same place"
    assert found(HERE, RIGHT, (1, 1, 4, 4)) == 1, "within another"
    assert found(HERE, (2, 0, 12, 10)) == 1, "shares 99 of 121 pixels"


class Sees:
    """A detector that finds the same boxes in every image."""

    label, digest = "boxes", ""

    def __init__(self, boxes: Boxes) -> None:
        self.boxes = boxes

    def detect(self, image: np.ndarray, *, above: float) -> dict[str, list[Detected]]:
        return objects(self.boxes)


def picture(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, format="PNG")
    return file.getvalue()


def judged(boxes: Boxes, asked: Question, height: int = 480, width: int = 480) -> float:
    prompt = QuestionPrompt(name="p", text="p", group="", questions=(asked,))
    image = AskedImage(key="a", encoded=picture(height, width), prompt=prompt)
    ((score,),) = ObjectJudge(Sees(boxes))(image)["probabilities"]  # type: ignore[arg-type]
    return float(score)


def test_the_surest_object_above_a_half_is_taken_in_pixels_of_the_authors_size() -> None:
    near = Relation(text="", objects=("dog", "cat"), relation="near")
    one = Count(text="", objects=("dog",), number=1)
    assert judged({"dog": [(HERE, 0.5)]}, one) == 0, "not above"
    assert judged({"dog": [(HERE, 0.4), (RIGHT, 0.9)]}, one) == 1
    left = Relation(text="", objects=("dog", "cat"), relation="on the left of")
    boxes: Boxes = {"dog": [(BELOW, 0.6), (HERE, 0.9)], "cat": [(RIGHT, 0.9)]}
    assert judged(boxes, left) == pytest.approx(0.95)
    apart: Boxes = {"dog": [(HERE, 0.9)], "cat": [((300, 300, 310, 310), 0.9)]}
    assert judged(apart, near, 479, 479) == pytest.approx(0.45 + 0.25)
    assert judged(apart, near, 958, 958) == pytest.approx(0.45 + 0.5), "150 pixels there, and not less here"
    assert judged(apart, near, 10, 960) == pytest.approx(0.45 + 0.5), "the longer side is 480"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A folder with the authors' files; see their repository, examples/dataset."""
    place = tmp_path / "dataset"
    place.mkdir()
    (place / "spatial_val.txt").write_text(
        "a dog on the left of a cat\n\na frog next to a dog\na man near a tv.\n"
    )
    (place / "numeracy_val.txt").write_text(
        "two dogs\none dog, two teddy bears and a bird sang a song\ntwo bees\n"
    )
    (place / "new_objects.txt").write_text("dog - dogs\nTeddy bear - teddy bears\nbird - birds\nbee - bees\n")
    return place


def test_prompts_are_read_from_the_authors_files(questions: Path) -> None:
    first, second = T2I_COMPBENCH_OBJECTS.read(questions / "spatial_val.txt")
    assert first.questions == (Relation(text=first.name, objects=("dog", "cat"), relation="on the left of"),)
    assert [one.objects for one in second.questions] == [("man", "tv")]  # type: ignore[attr-defined]
    dogs, many = T2I_COMPBENCH_OBJECTS.read(questions / "numeracy_val.txt")
    assert dogs.group == "numeracy, not comparable with UniDet" and dogs.name == "two dogs"
    assert [(one.objects, one.number) for one in many.questions] == [  # type: ignore[attr-defined]
        (("dog",), 1),
        (("teddy bear",), 2),
        (("bird",), 1),
    ]
    assert T2I_COMPBENCH_OBJECTS.name_of_file(Path("two dogs_000012.png")) == "two dogs"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a dog in front of a cat", r"line 1: 'in front of' asks for depth"),
        ("the dog barks", r"line 1: expected a relation of two objects, or numbers of objects, found 'the"),
    ],
)
def test_other_prompts_are_refused(text: str, told: str, questions: Path) -> None:
    (questions / "other.txt").write_text(text)
    with pytest.raises(InputError, match=told):
        T2I_COMPBENCH_OBJECTS.read(questions / "other.txt")


def test_counts_need_the_authors_list_of_objects(questions: Path) -> None:
    (questions / "new_objects.txt").write_text("dogs\n")
    with pytest.raises(InputError, match=r'new_objects\.txt: expected lines like "bottle - bottles"'):
        T2I_COMPBENCH_OBJECTS.read(questions / "numeracy_val.txt")
    (questions / "new_objects.txt").unlink()
    with pytest.raises(InputError, match=r"new_objects\.txt: expected a file"):
        T2I_COMPBENCH_OBJECTS.read(questions / "numeracy_val.txt")


def test_a_folder_from_images_to_the_labelled_score(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_mmdet(tmp_path / "detector", mmdet_weights(tiny_mask2former()))
    samples = tmp_path / "samples"
    samples.mkdir()
    for number, name in enumerate(["two dogs", "two dogs", "a frog next to a dog"]):
        (samples / f"{name}_{number:06d}.png").write_bytes(picture(48, 64 + number))
    looked_at: list[tuple[int, ...]] = []

    def detect(self: Detector, image: np.ndarray, *, above: float) -> Any:
        looked_at.append(image.shape)
        return objects({"dog": [(HERE, 0.9), (RIGHT, 0.8)][: 1 + image.shape[1] % 2]})

    monkeypatch.setattr(Detector, "detect", detect)
    out = tmp_path / "result.json"

    def run() -> Result:
        command = ["evaluate", "t2i-compbench-objects", str(samples), "--device", "cpu", "--json", str(out)]
        more = ["--questions", str(questions / "numeracy_val.txt"), "--detector", str(tmp_path / "detector")]
        return CliRunner().invoke(app, [*command, *more])

    done = run()
    assert done.exit_code == 0, done.output
    content = json.loads(out.read_text())
    (score,) = content["scores"]
    assert (score["name"], score["images"], score["prompts"], score["mean"]) == (
        "numeracy, not comparable with UniDet",
        2,
        1,
        0.75,
    )
    assert content["judge"]["label"].startswith("GenEval's detector (not the official detector")
    assert content["notes"][1].startswith("not comparable with UniDet") and len(looked_at) == 2
    assert "1 images passed over, of prompts of which nothing is asked" in content["notes"]
    assert "numeracy, not comparable with UniDet" in done.stdout
    assert run().stdout == done.stdout and len(looked_at) == 2, "the same command goes on"
