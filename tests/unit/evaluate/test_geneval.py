"""`evaluate geneval`, from images to the table, with small random networks in place of the published ones."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.support.manifests import manifest
from tests.support.tiny_clip import save_clip
from tests.support.tiny_mask2former import mmdet_weights, save_mmdet, tiny_mask2former
from ttsvar_ray.cli.app import app
from ttsvar_ray.columns import ColumnType
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.output import open_output
from ttsvar_ray.dataset.rows import RowContext, carried_columns
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.errors import OutputError
from ttsvar_ray.evaluate.color_names import ColorNames
from ttsvar_ray.evaluate.detector import Detector
from ttsvar_ray.evaluate.geneval import GenEvalJudge
from ttsvar_ray.evaluate.geneval_prompts import CLASS_NAMES, COLORS, read_prompt
from ttsvar_ray.evaluate.judging import AskedImage, JudgedImage, VerdictFile, here, judge_images
from ttsvar_ray.results import FinalImage, PromptResult, ResultImage
from ttsvar_ray.types import Prompt

TYPES = {"tag": ColumnType.STRING, "include": ColumnType.JSON, "exclude": ColumnType.JSON}


def picture(seed: int) -> bytes:
    """Return a PNG so flat that the detector's pixels of it are few."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `detector` and `clip`."""
    place = tmp_path_factory.mktemp("weights")
    save_mmdet(place / "detector", mmdet_weights(tiny_mask2former()))
    save_clip(place / "clip")
    return place


@pytest.fixture(scope="module")
def prompts(weights: Path) -> list[dict[str, Any]]:
    """Metadata of four prompts: what is in the first picture, what is not, and its color, right and wrong."""
    image = np.asarray(Image.open(io.BytesIO(picture(0))))
    found = Detector.load(weights / "detector").detect(image)
    best = {name: max(one.score for one in objects) for name, objects in found.items()}
    seen = max(best, key=lambda name: best[name])
    surest = max(found[seen], key=lambda one: one.score)
    assert surest.score > 0.3
    (color,) = ColorNames.load(weights / "clip").name(image, [surest], seen)
    unseen = next(name for name in CLASS_NAMES if best.get(name, 0) < 0.1)
    other = next(name for name in COLORS if name != color)
    return [
        {"tag": "single_object", "include": [{"class": seen, "count": 1}], "prompt": f"a photo of a {seen}"},
        {
            "tag": "single_object",
            "include": [{"class": unseen, "count": 1}],
            "prompt": f"a photo of a {unseen}",
        },
        {
            "tag": "colors",
            "include": [{"class": seen, "count": 1, "color": color}],
            "exclude": [{"class": unseen, "count": 1}],
            "prompt": f"a photo of a {color} {seen}",
        },
        {
            "tag": "colors",
            "include": [{"class": seen, "count": 1, "color": other}],
            "prompt": f"a photo of a {other} {seen}",
        },
    ]


@pytest.fixture
def folder(tmp_path: Path, prompts: list[dict[str, Any]]) -> Path:
    """Two pictures of each prompt in GenEval's layout, the first of which is the one that is known."""
    for index, metadata in enumerate(prompts):
        samples = tmp_path / "images" / f"{index:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(metadata))
        (samples.parent / "grid.png").write_bytes(b"not looked at")
        (samples / "0000.png").write_bytes(picture(0))
        (samples / "other.png").write_bytes(b"not looked at")
    (tmp_path / "images" / "notes").mkdir()
    return tmp_path / "images"


def run(source: Path, weights: Path, *more: str) -> Result:
    options = ["--detector", str(weights / "detector"), "--clip", str(weights / "clip"), "--device", "cpu"]
    return CliRunner().invoke(app, ["evaluate", "geneval", str(source), *options, *more])


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """An entry for each image that the detector looks at."""
    calls: list[float] = []
    detect = Detector.detect

    def counting(self: Detector, image: np.ndarray, *, above: float = 0.0) -> Any:
        calls.append(above)
        return detect(self, image, above=above)

    monkeypatch.setattr(Detector, "detect", counting)
    return calls


def test_a_folder_from_images_to_the_table(folder: Path, weights: Path, tmp_path: Path) -> None:
    result = run(folder, weights, "--json", str(tmp_path / "result.json"))
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()[:4]] == [
        ["tag", "images", "prompts", "correct", "+-"],
        ["single_object", "2", "2", "0.5000", "0.5000"],
        ["colors", "2", "2", "0.5000", "0.5000"],
        ["mean", "of", "tags", "4", "4", "0.5000", "0.3536"],
    ]
    assert "correct images 50.00%, prompts with a correct image 50.00%" in result.stdout
    assert "note: not the official detector: an mmdet checkpoint" in result.stdout
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["overall"] == 0.5 and content["tags"]["colors"]["prompts"] == 2
    assert content["rules"]["threshold"] == 0.3 and content["rules"]["counting_threshold"] == 0.9
    assert (
        content["detector"]["label"].startswith("not the official")
        and len(content["detector"]["sha256"]) == 64
    )
    assert {"torch", "transformers", "ttsvar-ray"} <= content["versions"].keys()
    assert [note[:20] for note in content["notes"][1:]] == [
        "4 of the benchmark's",
        "no prompt of two_obj",
        "1 images a prompt, w",
    ]
    lines = [json.loads(line) for line in (tmp_path / "images.geneval.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in lines[1:]] == [True, False, True, False]
    assert [line["image"] for line in lines[1:]] == [f"{index:05d}/samples/0000.png" for index in range(4)]
    assert not lines[1]["reasons"] and lines[4]["reasons"]


def test_it_goes_on_after_a_stop(folder: Path, weights: Path, looked_at: list[float]) -> None:
    whole = run(folder, weights)
    assert len(looked_at) == 4
    file = folder.with_name("images.geneval.jsonl")
    told = file.read_bytes()
    file.write_bytes(told[:-20])
    assert run(folder, weights).stdout == whole.stdout
    assert len(looked_at) == 5, "only the verdict that was cut short"
    assert file.read_bytes() == told
    (folder / "00001" / "samples" / "0000.png").write_bytes(picture(1))
    assert run(folder, weights).exit_code == 0
    assert len(looked_at) == 6, "an image that changed is judged again"
    shutil.rmtree(folder / "00003")
    assert "3 of the benchmark's" in run(folder, weights).stdout, "what is gone does not count"


def test_other_weights_do_not_go_on_with_the_same_verdicts(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    assert run(folder, weights).exit_code == 0
    shutil.copytree(weights, tmp_path / "others")
    changed = mmdet_weights(tiny_mask2former())
    changed["panoptic_head.cls_embed.bias"] += 1
    save_mmdet(tmp_path / "others" / "detector", changed)
    refused = run(folder, tmp_path / "others")
    assert refused.exit_code == 2
    assert "its verdicts rest on something else (detector:" in refused.stderr
    assert run(folder, tmp_path / "others", "--verdicts", str(tmp_path / "v.jsonl")).exit_code == 0


def test_what_cannot_be_judged_is_said(folder: Path, weights: Path, tmp_path: Path) -> None:
    (folder / "00002" / "samples" / "0000.png").write_bytes(picture(0)[:300])
    damaged = run(folder, weights)
    assert damaged.exit_code == 2 and "00002/samples/0000.png: not an image" in damaged.stderr
    (folder / "00002" / "metadata.jsonl").write_text('{"prompt": "a dog"}')
    missing = run(folder, weights)
    assert missing.exit_code == 2 and "00002/metadata.jsonl: expected GenEval's metadata" in missing.stderr
    assert run(folder, weights, "--images", "all").exit_code == 2
    nothing = run(tmp_path, weights)
    assert nothing.exit_code == 2 and "found neither" in nothing.stderr
    folder.with_name("images.geneval.jsonl").write_text("something else\n")
    other = run(folder, weights)
    assert other.exit_code == 2 and "line 1: expected verdicts" in other.stderr


def kept(rank: int, content: bytes) -> ResultImage:
    image = FinalImage.of_bytes(content, width=160, height=3, image_format="png")
    return ResultImage(rank=rank, image=image, reward=-rank, reward_history=(), lineage=(rank,), bits=())


@pytest.fixture
def output(tmp_path: Path, prompts: list[dict[str, Any]]) -> OutputLayout:
    """A run over the four prompts with two images of each, the better one of which is known."""
    layout = OutputLayout(tmp_path / "run")
    columns = {name: str(kind) for name, kind in TYPES.items()}
    open_output(
        layout,
        manifest("seed=7", content={"strategy.n": 2}, prompt_count=4, rows_per_chunk=4, column_types=columns),
    )
    done = []
    for row, metadata in enumerate(prompts):
        columns = {name: metadata.get(name) for name in TYPES}
        prompt = Prompt(row=row, prompt_id=f"id{row}", ordinal=0, text=metadata["prompt"], columns=columns)
        images = (kept(0, picture(0)), kept(1, picture(1)))
        done.append(PromptResult(prompt=prompt, images=images, trace=(), attempts=1, seconds=0.1))
    carried = carried_columns(TYPES)
    context = RowContext(model="shapes", strategy="raw", seed=7, reward_name="none", carried=carried)
    write_chunk(layout, 0, rows=range(4), finished=done, failed=[], context=context)
    return layout


def test_a_run_and_its_exported_folder_score_the_same(
    output: OutputLayout, weights: Path, tmp_path: Path, looked_at: list[float]
) -> None:
    best = run(tmp_path / "run", weights, "--json", str(tmp_path / "run.json"))
    assert best.exit_code == 0, best.output
    exported = ["export", str(tmp_path / "run"), "--to", str(tmp_path / "folder"), "--layout", "geneval"]
    assert CliRunner().invoke(app, exported).exit_code == 0
    of_folder = run(tmp_path / "folder", weights, "--json", str(tmp_path / "folder.json"))
    assert of_folder.stdout == best.stdout
    run_json, folder_json = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("run", "folder")
    )
    assert run_json["prompts_digest"] == folder_json["prompts_digest"]
    assert run_json["source"]["settings"] == {"strategy.n": 2} and run_json["source"]["images"] == "best"
    looked_at.clear()
    every = run(tmp_path / "run", weights, "--images", "all")
    assert every.exit_code == 0 and len(looked_at) == 4, "the best ones have verdicts already"
    assert every.stdout.splitlines()[3].split()[3:5] == ["8", "4"]


class SeesDogs:
    """A detector that finds in each image as many dogs as its first pixel says, surely."""

    label, digest = "dogs", ""

    def detect(self, image: np.ndarray, *, above: float) -> Mapping[str, Any]:
        from ttsvar_ray.evaluate.geneval_rules import Detected

        box = np.array([0, 0, 1, 1], np.float32)
        return {"dog": [Detected(box=box, score=np.float32(0.95))] * int(image[0, 0, 0])}


def test_images_turned_by_exif_and_of_any_kind_are_judged_as_seen(tmp_path: Path) -> None:
    asked = read_prompt(
        {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"}, where="here"
    )
    file = io.BytesIO()
    pixels = np.zeros((2, 3), np.uint8)
    pixels[1, 2] = 2
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(file, format="PNG", exif=exif)
    image = AskedImage(key="a", encoded=file.getvalue(), prompt=asked)
    assert image.pixels().shape == (2, 3, 3)
    judged_by = GenEvalJudge(SeesDogs(), None)  # type: ignore[arg-type]
    assert judged_by.judge(image.pixels(), asked).correct


@pytest.fixture
def verdicts(tmp_path: Path) -> Iterator[VerdictFile]:
    with VerdictFile(tmp_path / "v.jsonl", {"a": 1}) as file:
        yield file


def test_no_images_are_no_score(verdicts: VerdictFile) -> None:
    with pytest.raises(OutputError, match="found none"):
        judge_images([], verdicts, here(lambda image: {}))


class Asked:
    """A prompt that is its number."""

    def __init__(self, number: int) -> None:
        self.key = str(number)


def test_verdicts_stand_in_the_order_of_the_images_whoever_is_done_first(tmp_path: Path) -> None:
    """Workers that judge bring their verdicts in any order, and some are there already."""

    def images() -> Iterator[AskedImage]:
        for number in (0, 1, 2, 1, 3, 4):
            yield AskedImage(key=f"{number}.png", encoded=b"", prompt=Asked(number))

    def backwards(pieces: Iterator[Any]) -> Iterator[Any]:
        for piece in sorted(pieces, key=lambda piece: -piece[0]):
            yield piece, {"score": int(piece[1].prompt.key)}

    def judged(name: str, each: Any, first: int = 6) -> list[JudgedImage]:
        told: list[int] = []
        with VerdictFile(tmp_path / name, {}) as file:
            done = judge_images(itertools.islice(images(), first), file, each, on_image=told.append)
        assert told == sorted(told) and told[-1] <= first
        return done

    straight = judged("straight", here(lambda image: {"score": int(image.prompt.key)}))
    assert [one.found["score"] for one in straight] == [0, 1, 2, 1, 3, 4], "of equal images one is judged"
    judged("parts", backwards, first=3)
    assert [one.found for one in judged("parts", backwards)] == [one.found for one in straight]
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "straight").read_bytes()
    assert len((tmp_path / "parts").read_bytes().splitlines()) == 1 + 5
