"""Benchmarks that ask questions: their rules, their files, and a tiny random judge over images."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.support.manifests import manifest
from tests.support.tiny_vision_language import save_vision_language
from ttsvar_ray.cli.app import app
from ttsvar_ray.cli.evaluate import _ASKING
from ttsvar_ray.columns import ColumnType
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.output import open_output
from ttsvar_ray.dataset.rows import RowContext, carried_columns
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.errors import InputError
from ttsvar_ray.evaluate.benchmarks import BENCHMARKS
from ttsvar_ray.evaluate.questions import AnsweredImage, Question, QuestionPrompt
from ttsvar_ray.results import FinalImage, PromptResult, ResultImage
from ttsvar_ray.rewards.vision_language import VisionLanguage
from ttsvar_ray.types import Prompt

HEAD = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple"
ROWS = f"""{HEAD},question_natural_language
a,"a red ring, drawn",,1,0,entity,whole,entity - whole (ring),Is there a ring?
a,"a red ring, drawn",,2,1,attribute,color,attribute - color (ring),Is the ring red?
a,"a red ring, drawn",,3,"1,2",relation,spatial,relation (ring),Is the red ring drawn?
b,two bars,,1,0,entity,whole,entity - whole (bars),Are there bars?
"""
YES, NO = [0.6, 0.3], [0.2, 0.4]


def scores(name: str, questions: Path, answers: dict[str, list[list[list[float]]]]) -> dict[str, float]:
    """Return a benchmark's scores by name; `answers`: probabilities by prompt, image and question."""
    benchmark = BENCHMARKS[name]
    prompts = {prompt.name: prompt for prompt in benchmark.read(questions)}
    images = [
        AnsweredImage(prompt=prompts[key], probabilities=image)
        for key, own in answers.items()
        for image in own
    ]
    return {score.name: score.mean for score in benchmark.summary(images)}


def test_dpg_bench_counts_a_question_only_where_those_it_rests_on_hold(tmp_path: Path) -> None:
    (tmp_path / "dpg.csv").write_text(ROWS)
    found = scores(
        "dpg-bench", tmp_path / "dpg.csv", {"a": [[YES, YES, NO], [NO, YES, YES]], "b": [[YES], [YES]]}
    )
    assert found["DPG-Bench"] == pytest.approx(100 * (2 / 3 + 0 + 1 + 1) / 4)
    assert found["entity"] == pytest.approx(100 * 3 / 4), "of answers before the rule"
    assert found["attribute"] == 100 and found["relation"] == 50


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("dependency", "depends", "found no dependency"),
        ('"1,2"', '"1,7"', r"a: question 3: dependency: expected numbers .* got '1,7'"),
        ("bars,,1", "bars,,x", "line 5: proposition_id: expected a number, got 'x'"),
    ],
)
def test_other_files_than_dpg_bench_has_are_refused(
    before: str, after: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "dpg.csv").write_text(ROWS.replace(before, after))
    with pytest.raises(InputError, match=told):
        BENCHMARKS["dpg-bench"].read(tmp_path / "dpg.csv")


def test_geneval_2_takes_arithmetic_and_geometric_means_of_probabilities(tmp_path: Path) -> None:
    asked = {"prompt": "three rings", "atom_count": 2, "skills": ["count", "object"]}
    asked["vqa_list"] = [["How many rings?", "three"], ["Are there rings?", "Yes"]]
    (tmp_path / "data.jsonl").write_text(
        json.dumps(asked) + "\n" + json.dumps({**asked, "prompt": "another"})
    )
    found = scores(
        "geneval2", tmp_path / "data.jsonl", {"00000": [[[0.9], [0.4]]], "00001": [[[0.0], [1.0]]]}
    )
    assert found["Soft-TIFA AM"] == pytest.approx((0.65 + 0.5) / 2)
    assert found["Soft-TIFA GM"] == pytest.approx(math.sqrt(0.36) / 2)
    assert found["count"] == pytest.approx(0.45) and found["object"] == pytest.approx(0.7)
    assert found[" 2 atoms"] == found["Soft-TIFA GM"]
    for wrong in ('{"prompt": "a"}', '{"prompt": "a", "vqa_list": []}', "none"):
        (tmp_path / "data.jsonl").write_text(wrong)
        with pytest.raises(InputError, match=r"data\.jsonl: line 1: expected GenEval 2's prompt"):
            BENCHMARKS["geneval2"].read(tmp_path / "data.jsonl")
    with pytest.raises(InputError, match="expected a file of questions"):
        BENCHMARKS["geneval2"].read(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("written", [lambda value: value, json.dumps], ids=["as-it-is", "as-text"])
def test_oneig_asks_three_classes(written: Any, tmp_path: Path) -> None:
    texts = {"1": "A ring?", "2": "Is it red?", "3": "Is its edge red?"}
    item = {"question": written(texts), "dependency": written({"1": [0], "2": [1], "3": [2]})}
    for name in ("anime", "human", "object"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"000": item}))
    answers = {
        "anime/000": [[YES, YES, YES], [YES, YES, YES]],
        "human/000": [[NO, YES, YES]],
        "object/000": [[YES, NO, NO]],
    }
    found = scores("oneig", tmp_path, answers)
    # The third of human/000 counts: what it rests on holds, whatever that rests on itself.
    third = pytest.approx(1 / 3)
    assert found == {"alignment": pytest.approx(5 / 9), "anime": 1.0, "human": third, "object": third}
    assert BENCHMARKS["oneig"].name_of_file(Path("anime/mine/000.webp")) == "anime/000"
    (tmp_path / "human.json").write_text('{"000": ["Is it red?"]}')
    with pytest.raises(InputError, match=r"human\.json: expected"):
        BENCHMARKS["oneig"].read(tmp_path)


def test_questions_that_rest_on_each_other_in_a_circle_do_not_count() -> None:
    questions = (Question(text="a", parents=(1,)), Question(text="b", parents=(0,)), Question(text="c"))
    prompt = QuestionPrompt(name="p", text="", group="", questions=questions)
    assert AnsweredImage(prompt=prompt, probabilities=[YES, YES, YES]).counts == [False, False, True]


def picture(seed: int, cells: int = 1) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (64 * cells, 64 * cells, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vision_language(tmp_path_factory.mktemp("judge") / "tiny-qwen")


def run(name: str, source: Path, questions: Path, judge: Path, *more: str) -> Result:
    options = ["--questions", str(questions), "--judge", str(judge), "--device", "cpu"]
    return CliRunner().invoke(app, ["evaluate", name, str(source), *options, *more])


def result(done: Result, file: Path) -> Any:
    assert done.exit_code == 0, done.output
    return json.loads(file.read_text())


def test_grids_of_four_are_judged_and_the_same_command_goes_on(tmp_path: Path, judge: Path) -> None:
    (tmp_path / "dpg.csv").write_text(ROWS)
    images = tmp_path / "images"
    images.mkdir()
    for number, name in enumerate("ab"):
        (images / f"{name}.png").write_bytes(picture(number, cells=2))
    (images / "other.png").write_bytes(picture(9))
    out = tmp_path / "result.json"
    content = result(run("dpg-bench", images, tmp_path / "dpg.csv", judge, "--json", str(out)), out)
    assert content["images"] == 8 and content["scores"][0]["prompts"] == 2
    assert content["judge"]["label"] == "tiny-qwen" and content["dtype"] == "float32"
    assert len(content["prompts_digest"]) == 64 and "torch" in content["versions"]
    assert [note.partition(":")[0][:30] for note in content["notes"]] == [
        "judged by tiny-qwen",
        "not the official judge, which ",
        "2 of the benchmark's 1065 prom",
        "4 images passed over, of promp",
    ]
    file = tmp_path / "images.dpg-bench.jsonl"
    whole = file.read_bytes()
    first = json.loads(whole.splitlines()[1])
    tile = np.asarray(Image.open(images / "a.png"))[:64, :64]
    model = VisionLanguage(judge)
    asked = [("Is there a ring? Please answer yes or no.", ("yes", "no"))]
    assert first["image"] == "a.png#0"
    assert first["probabilities"][0] == model.probabilities(tile, asked)[0]
    file.write_bytes(b"\n".join(whole.splitlines()[:4]) + b"\n")
    again = run("dpg-bench", images, tmp_path / "dpg.csv", judge, "--json", str(tmp_path / "again.json"))
    assert again.exit_code == 0 and file.read_bytes() == whole
    assert (tmp_path / "again.json").read_bytes() == out.read_bytes()


def test_black_cells_of_oneig_are_no_images(tmp_path: Path, judge: Path) -> None:
    item = {"question": {"1": "A ring?"}, "dependency": {"1": [0]}}
    (tmp_path / "questions").mkdir()
    for name in ("anime", "human", "object"):
        (tmp_path / "questions" / f"{name}.json").write_text(json.dumps({"000": item}))
    (tmp_path / "images" / "anime" / "mine").mkdir(parents=True)
    pixels = np.array(Image.open(io.BytesIO(picture(0, cells=2))))
    pixels[:64, 64:] = 0
    Image.fromarray(pixels).save(tmp_path / "images" / "anime" / "mine" / "000.png")
    out, asked = tmp_path / "result.json", ("--asked", "{question} yes or no")
    done = run("oneig", tmp_path / "images", tmp_path / "questions", judge, "--json", str(out), *asked)
    content = result(done, out)
    assert content["images"] == 3 and content["asked"] == "{question} yes or no"
    lines = (tmp_path / "images.oneig.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["image"][-2:] for line in lines] == ["#0", "#2", "#3"]
    first = VisionLanguage(judge).probabilities(pixels[:64, :64], [("A ring? yes or no", ("yes", "no"))])
    assert json.loads(lines[0])["probabilities"] == first
    refused = run("oneig", tmp_path / "images", tmp_path / "questions", judge, "--asked", "Is it so?")
    assert refused.exit_code == 2 and "--asked: expected {question} in it" in refused.stderr


def test_a_prompt_counts_once_however_many_images_it_has(tmp_path: Path) -> None:
    (tmp_path / "dpg.csv").write_text(ROWS)
    found = scores("dpg-bench", tmp_path / "dpg.csv", {"a": [[YES, YES, YES]], "b": [[NO]] * 4})
    assert found["DPG-Bench"] == 50


def test_a_folder_with_metadata_is_found_by_its_prompts(tmp_path: Path, judge: Path) -> None:
    pairs = [["How many rings?", "three"], ["Are there rings?", "Yes"]]
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "three rings", "vqa_list": pairs}))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_bytes(picture(0))
    told = {"file_name": "x.png", "prompt": "three rings"}
    (tmp_path / "images" / "metadata.jsonl").write_text(json.dumps(told))
    out = tmp_path / "result.json"
    done = run("geneval2", tmp_path / "images", tmp_path / "data.jsonl", judge, "--json", str(out))
    (arithmetic, geometric) = result(done, out)["scores"]
    assert 0 < geometric["mean"] <= arithmetic["mean"] < 1
    assert "Soft-TIFA AM" in done.stdout and "note: judged by tiny-qwen" in done.stdout
    pairs[0][1] = "zwölf"
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "three rings", "vqa_list": pairs}))
    refused = run("geneval2", tmp_path / "images", tmp_path / "data.jsonl", judge)
    assert refused.exit_code == 2 and "a tokenizer with 'zwölf' as one word" in refused.stderr


@pytest.mark.parametrize("name", ["dpg-bench", "oneig"])
def test_a_run_is_found_by_its_prompts_or_by_the_columns_of_the_benchmark(
    name: str, tmp_path: Path, judge: Path
) -> None:
    """The rows of DPG-Bench by their text, those of OneIG by their category and id."""
    layout = OutputLayout(tmp_path / "run")
    types = {"category": ColumnType.STRING, "id": ColumnType.STRING}
    columns = {column: str(kind) for column, kind in types.items()}
    settings = ("seed=7", "sampling.guidance=3", "prompts.rewrite='{prompt}, drawn'")
    open_output(layout, manifest(*settings, prompt_count=3, rows_per_chunk=3, column_types=columns))
    done = []
    for row, (text, category) in enumerate(
        [("a red ring, drawn", "Portrait"), ("two bars", "General_Object"), ("another", "Text_Rendering")]
    ):
        own = {"category": category, "id": "000"}
        prompt = Prompt(row=row, prompt_id=f"id{row}", ordinal=0, text=text, columns=own)
        image = FinalImage.of_bytes(picture(row), width=64, height=64, image_format="png")
        kept = ResultImage(rank=0, image=image, reward=0.0, reward_history=(), lineage=(0,), bits=())
        done.append(PromptResult(prompt=prompt, images=(kept,), trace=(), attempts=1, seconds=0.1))
    context = RowContext(
        model="shapes", strategy="raw", seed=7, reward_name="none", carried=carried_columns(types)
    )
    write_chunk(layout, 0, rows=range(3), finished=done, failed=[], context=context)
    questions = tmp_path / "questions"
    if name == "oneig":
        questions.mkdir()
        item = {"question": {"1": "A ring?"}, "dependency": {"1": [0]}}
        for kind in ("anime", "human", "object"):
            (questions / f"{kind}.json").write_text(json.dumps({"000": item}))
    else:
        questions.write_text(ROWS)
    out = tmp_path / "result.json"
    content = result(run(name, tmp_path / "run", questions, judge, "--json", str(out)), out)
    assert content["images"] == 2
    assert any(note.startswith("1 images passed over") for note in content["notes"])
    source = content["source"]
    assert source["seed"] == 7 and source["sampling"]["guidance"] == 3.0 and source["images"] == "best"
    assert source["prompts"]["rewrite"] == "{prompt}, drawn" and source["prompts"]["digest"]
    refused = run(name, tmp_path / "run", questions, judge, "--grid", "2")
    assert refused.exit_code == 2 and "--grid:" in refused.stderr
    if name == "oneig":
        exported = ["export", str(tmp_path / "run"), "--to", str(tmp_path / "folder"), "--layout", "oneig"]
        assert CliRunner().invoke(app, exported).exit_code == 0
        done_again = run(name, tmp_path / "folder", questions, judge, "--grid", "1", "--json", str(out))
        assert result(done_again, out)["scores"] == content["scores"], "the folder holds the run's images"


def test_what_cannot_be_judged_is_said(tmp_path: Path, judge: Path) -> None:
    (tmp_path / "dpg.csv").write_text(ROWS)
    (tmp_path / "images").mkdir()
    questions = tmp_path / "dpg.csv"

    def refused(*more: str, source: Path = tmp_path / "images", by: Path = judge) -> str:
        done = run("dpg-bench", source, questions, by, *more)
        assert done.exit_code == 2, done.output
        return " ".join(done.stderr.split())

    assert "found none" in refused()
    assert "a folder of images, found neither" in refused(source=tmp_path / "absent")
    assert "--dtype: expected one of" in refused("--dtype", "int8")
    assert "--address: add --workers" in refused("--address", "auto")
    assert "no such file or folder" in refused(by=tmp_path / "absent")
    (tmp_path / "images" / "a.png").write_bytes(b"none")
    assert "a.png: not an image" in refused()
    (tmp_path / "images" / "more").mkdir()
    (tmp_path / "images" / "more" / "a.jpg").write_bytes(b"none")
    assert "expected one file of a, found" in refused("--grid", "1")


def test_the_commands_are_the_benchmarks() -> None:
    assert list(_ASKING) == list(BENCHMARKS)
    assert all("{question}" in one.asked for one in BENCHMARKS.values())
