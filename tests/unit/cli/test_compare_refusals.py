"""Sweeps that cannot be run, and evaluators that cannot judge, are told before anything is drawn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.sweeps import GRID, SMALL, call, write_sweep
from ttsvar_ray.cli.compare import BENCHMARKS
from ttsvar_ray.evaluate.benchmark_scorers import FOLDERS


def test_a_dry_run_tells_which_evaluators_could_not_judge(tmp_path: Path) -> None:
    evaluators = "evaluators: [shapes-chekcer, hps-v2.1, constant, constant]"
    file = write_sweep(tmp_path, SMALL.replace("evaluators: [shapes-checker, constant]", evaluators))
    told = call("compare", str(file), "--dry-run")
    assert "not here: evaluators: expected one of shapes-checker, geneval, t2i-compbench," in told
    assert "got 'shapes-chekcer'; did you mean 'shapes-checker'?" in told
    assert "not here: evaluators: reward.path: the reward 'hps-v2.1' needs" in told
    assert "not here: evaluators: 'constant' is given twice" in told


def test_a_dry_run_tells_which_prompts_and_weights_are_not_here(tmp_path: Path) -> None:
    base = "base: {model: {name: var-d16, path: nowhere}, prompts: {path: absent.txt}}"
    variants = "variants: {raw: {strategy: {name: raw}}}\ncontrol: raw"
    file = write_sweep(tmp_path, f"name: x\n{base}\n{variants}\nevaluators: [pickscore=no]")
    told = call("compare", str(file), "--dry-run")
    assert "not here: every variant: model: expected its " in told
    assert "not here: absent.txt: no such prompt file" in told
    refused = call("compare", str(file), "--output", str(tmp_path / "out"), code=2)
    for line in re.findall(r"not here: (.*)", told):
        assert f"  {line}\n" in refused


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("control: raw", "control: rwa", "control: expected one of the variants raw, best-of-2, got 'rwa'"),
        ("n: 2}", "n: 0}", "variant 'best-of-2': strategy.n"),
        ("published:\n  raw", "published:\n  row", "published: expected variants, got 'row'"),
        (
            "repetitions: 2",
            "repetition: 2",
            "repetition: unknown key; did you mean 'repetitions'? known keys: name,",
        ),
        ("n: 2}}", "n: 2}, seed: 9}", "variant 'best-of-2': seed: expected the same for all variants"),
        ("repetitions: 2", "repetitions: yes", "repetitions: expected a number, got true"),
        ("variants:", "variant:", "variant: unknown key; did you mean 'variants'?"),
        (
            "evaluators: [shapes-checker, constant]",
            "evaluators: []",
            "at least 1 of them",
        ),
        ("evaluators: [shapes-checker, constant]", "evaluators: x", "expected a list, got 'x'"),
        ("evaluators: [shapes-checker, constant]", "evaluators: [shape]", "evaluators: expected one of"),
        ("0.75", "much", "published.raw.shapes-checker: expected a number, got 'much'"),
        (
            "{strategy: {name: raw}}",
            "raw",
            "variants.raw: expected a section with keys",
        ),
    ],
)
def test_sweeps_that_mean_nothing_are_refused(
    tmp_path: Path, before: str, after: str, complaint: str
) -> None:
    file = write_sweep(tmp_path, SMALL.replace(before, after))
    assert complaint in call("compare", str(file), "--output", str(tmp_path / "out"), code=2)
    assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_with_a_sweep_is_told_at_once(tmp_path: Path) -> None:
    text = SMALL.replace("control:", "kontrol:").replace("notes: Of no importance.", "notes: 3")
    file = write_sweep(tmp_path, text.replace("n: 2}", "n: 0}").replace("name: raw}", "nam: raw}"))
    told = call("compare", str(file), code=2)
    assert "5 problems:" in told
    for problem in (
        "kontrol: unknown key; did you mean 'control'?",
        "control: not given; add it",
        "notes: expected text, got 3",
        "variant 'raw': strategy.nam: unknown key; did you mean 'name'?",
        "variant 'best-of-2': strategy.n: expected at least 1, got 0",
    ):
        assert f"{file}: {problem}" in told, told


def test_a_sweep_that_is_no_file_of_sections_is_told_as_one(tmp_path: Path) -> None:
    assert "nowhere.yaml: no such sweep file" in call("compare", str(tmp_path / "nowhere.yaml"), code=2)
    told = call("compare", str(write_sweep(tmp_path, "[1]")), code=2)
    assert "expected sections such as 'base:' and 'variants:', got one list" in told


def test_a_grid_over_what_is_no_section_is_told_with_the_job(tmp_path: Path) -> None:
    file = write_sweep(
        tmp_path, GRID.replace("strategy: {name: resampling, plan: published}", "strategy: raw")
    )
    told = call("compare", str(file), "--dry-run", code=2)
    assert "variant 'n=2, lambda=1': strategy: expected a section" in told, told


@pytest.mark.parametrize(
    ("before", "after"),
    [("[2, 4]", "[2, 2]"), ("repetitions", "variants: {'n=4, lambda=1': {seed: 0}}\nrepetitions")],
)
def test_a_variant_that_is_there_twice_is_refused(tmp_path: Path, before: str, after: str) -> None:
    file = write_sweep(tmp_path, GRID.replace(before, after))
    told = call("compare", str(file), "--dry-run", code=2)
    assert re.search(r"grid: variant 'n=[24], lambda=1' is there twice", told), told


def test_prompts_that_the_checker_does_not_know_are_told_before_anything_is_drawn(tmp_path: Path) -> None:
    file, output = write_sweep(tmp_path, SMALL), tmp_path / "out"
    with (tmp_path / "prompts.jsonl").open("a") as lines:
        lines.write('{"prompt": "a dog"}\n')
    told = call("compare", str(file), "--output", str(output), code=2)
    assert "evaluators: shapes-checker reads captions of the built-in world alone: caption 'a dog': " in told
    assert "expected one of circle, ring, cross, bar, moon, found 'dog'" in told
    assert not output.exists()


def test_the_benchmarks_that_compare_takes_are_those_that_there_are() -> None:
    assert set(BENCHMARKS) == set(FOLDERS)


def test_weights_that_a_later_variant_lacks_are_told_before_anything_is_drawn(tmp_path: Path) -> None:
    text = SMALL.replace("n: 2}}", "n: 2}, reward: {path: HERE/absent}}").replace(
        "device: cpu", "device: cuda:99"
    )
    file = write_sweep(tmp_path, text.replace("constant]", "geneval=only]"))
    told = call("compare", str(file), "--output", str(tmp_path / "out"), code=2)
    assert "3 problems:" in told
    assert "every variant: model.device: 'cuda:99'" in told
    assert f"variant 'best-of-2': reward.path: expected the files of the weights at {tmp_path}" in told
    assert "evaluators: expected geneval=DETECTOR:CLIP" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("evaluators", "complaint"),
    [
        (
            "geneval=only",
            "evaluators: expected geneval=DETECTOR:CLIP, the folders of the detector and of CLIP",
        ),
        ("t2i-compbench=:", "evaluators: expected t2i-compbench=QUESTIONS:JUDGE, the file of noun chunks"),
        (
            "t2i-compbench-clip=HERE/other.txt:HERE",
            "t2i-compbench-clip: expected prompts of HERE/other.txt among those of the job, found none",
        ),
        ("constant, constant", "evaluators: 'constant' is given twice"),
        ("shapes-cheker", "evaluators: expected one of shapes-checker, geneval, t2i-compbench, "),
        ("shapes-cheker", "got 'shapes-cheker'; did you mean 'shapes-checker'?"),
        ("t2i-compbench-objects=HERE/no.txt:HERE", "HERE/no.txt: expected a file of questions"),
        (
            "t2i-compbench-clip=HERE/same.txt:HERE/no",
            "merges.txt in HERE/no, found nothing there; `ttsvar-ray fetch`",
        ),
        ("t2i-compbench-objects=HERE/no.txt:HERE, geneval=only, constan", "4 problems:"),
        (
            "t2i-compbench-objects=HERE/same.txt:HERE",
            "743b7d99.pth in HERE, found neither one .pth nor config.json; `ttsvar-ray fetch`",
        ),
        (
            "geneval=HERE:HERE",
            "found no config.json and no model.safetensors and no vocab.json and no merges.txt; `ttsvar-ray",
        ),
        (
            "t2i-compbench=HERE/same.txt:HERE",
            "in HERE, found no config.json and no model.safetensors and no voc",
        ),
    ],
)
def test_evaluators_that_cannot_judge_are_refused_before_anything_is_drawn(
    tmp_path: Path, evaluators: str, complaint: str
) -> None:
    (tmp_path / "other.txt").write_text("a dog\n")
    (tmp_path / "same.txt").write_text("a photo of a red circle\n")
    file = write_sweep(
        tmp_path, SMALL.replace("[shapes-checker, constant]", f'["{evaluators}"]'.replace(", ", '", "'))
    )
    told = call("compare", str(file), "--output", str(tmp_path / "out"), code=2)
    assert complaint.replace("HERE", str(tmp_path)) in told
    assert not (tmp_path / "out").exists()
