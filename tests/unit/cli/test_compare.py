"""Sweeps: what a file may say, the statistics of the table, and a small one from end to end."""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.sweeps import GRID, SMALL, call, write_sweep
from tests.support.tiny_blip import save_blip
from tests.support.tiny_clip import save_clip
from tests.support.tiny_mask2former import mmdet_weights, save_mmdet, tiny_mask2former
from ttsvar_ray.evaluate.comparison import (
    Outcomes,
    compare,
    grouped_mean,
    interval,
    markdown,
    table,
    text_numbers,
)
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.job.sweep import read_sweep
from ttsvar_ray.report.plot import Chart, Series

ROOT = Path(__file__).resolve().parents[3]


SHIPPED = sorted([*(ROOT / "jobs/shapes").glob("*.yaml"), *(ROOT / "jobs/paper").glob("*.yaml")])


ONE_GROUP = np.zeros(4, dtype=np.int64)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_shipped_sweep_is_understood(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    sweep, variants = read_sweep(file, tmp_path)
    names = [variant.name for variant in variants]
    assert sweep.control in names and len(names) > 2
    text = file.read_text()
    assert f"ttsvar-ray compare {file.relative_to(ROOT)}" in text


def test_a_dry_run_shows_plans_and_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    told = call("compare", "jobs/paper/equal_seconds.yaml", "--dry-run")
    assert "8B, raw (control): 1.00 images a prompt" in told
    assert "2B, raw: 0.32 images" in told, "costs of all variants are in images of one model"
    assert "8 -> 1 trajectories over 13 scales: cluster at 2, 5; resample at 6, 9" in told
    assert not (ROOT / "outputs" / "equal_seconds").exists()


def test_the_sweeps_on_three_objects_are_those_of_the_docs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    command = re.search(
        r"```\n.*compare (jobs/shapes/\S+) ((?:--set \S+|\\\n| )+)\n```", Path("docs/paper.md").read_text()
    )
    assert command is not None
    overrides = re.findall(r"--set (\S+)", command[2])
    _, variants = read_sweep(Path(command[1]), tmp_path, overrides)
    for job in (variant.job for variant in variants):
        (reward,) = resolve(job).rewards
        assert reward.path == Path("recipes/shapes/hard_weights/reward")
        assert str(job.prompts.path).endswith("shapes_hard.jsonl") and job.prompts.id_column is None


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [file.stem for file in SHIPPED if file.parent.name == "shapes"])
def test_the_sweeps_of_the_built_in_model_run(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    call("compare", f"jobs/shapes/{name}.yaml", "--output", str(tmp_path), "--set", "prompts.limit=2")
    assert (tmp_path / "frontier.png").is_file()


OFTEN_NAN = """
import numpy as np
from ttsvar_ray.rewards.protocol import PlainReward

class Half(PlainReward):
    name = "half"
    def __init__(self, device): pass
    def score(self, images, texts):
        return np.where(images[:, 0, 0, 0] < 300, np.nan, 1.0)
"""


def test_a_small_sweep_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "often_nan.py").write_text(OFTEN_NAN)
    monkeypatch.syspath_prepend(tmp_path)
    sweep = SMALL.replace("[shapes-checker, constant]", '[shapes-checker, constant, "often_nan:Half"]')
    file, output = write_sweep(tmp_path, sweep), tmp_path / "out"
    command = ("compare", str(file), "--output", str(output), "--device", "cpu")
    told = call(*command)
    written = (output / "table.md").read_text()
    assert written.strip() in told
    head, _, raw, two = [line for line in written.splitlines() if line.startswith("|")]
    assert head.startswith(
        "| variant | cost in images | seconds | device seconds | shapes-checker | shapes-checker minus raw |"
    )
    assert "| 0.7500 |" in raw and "Of no importance." in written
    assert two.split("|")[2].strip() == "1.99"
    outcomes = pq.read_table(output / "outcomes.parquet").to_pylist()
    assert len(outcomes) == 2 * 2 * 2
    rewards = {
        (row["variant"], row["repetition"], row["row"]): (row["reward"], row["shapes-checker"])
        for row in outcomes
    }
    for repetition in (0, 1):
        for row in (0, 1):
            one, best = (rewards[name, repetition, row][0] for name in ("raw", "best-of-2"))
            assert best >= one, "the first image of both is the same: common random numbers"
    assert {value for _, value in rewards.values()} <= {0.0, 1.0}
    assert "often_nan:Half: 8 of 8 scores are NaN or infinite, and so are the means over them." in written
    content = json.loads((output / "table.json").read_text(), parse_constant=pytest.fail)
    assert content["rows"][0]["scores"]["often_nan:Half"] == {"mean": None, "standard_error": None}
    assert [row["variant"] for row in content["rows"]] == ["raw", "best-of-2"]
    assert all(row["device_seconds"] > 0 for row in content["rows"])
    assert content["rows"][1]["minus_control"]["constant"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert Image.open(output / "frontier.png").size == (1440, 880)
    assert (output / "frontier.svg").read_text().count("<circle") == 2
    assert "best-of-2" in (output / "frontier.csv").read_text()
    # Going on makes nothing again, and gives the same table.
    parts = {part: part.stat().st_mtime_ns for part in output.rglob("part-*.parquet")}
    assert len(parts) == 4 * (1 + 1 + 3)
    assert call(*command).endswith(told[told.index("small\n") :])
    assert {part: part.stat().st_mtime_ns for part in output.rglob("part-*.parquet")} == parts


def test_the_table_says_what_its_costs_are_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    selection = "{scale: 2, operator: own_operator:Tournament}"
    plan = f"batch_schedule: {[2, 2] + [1] * 11}, selections: [{selection}]"
    mine = f"mine: {{reward: {{name: own_reward:Greenness}}, strategy: {{name: tts-var, {plan}}}}}"
    text = SMALL.replace("best-of-2: {strategy: {name: best-of-n, n: 2}}", mine)
    text = text.replace("repetitions: 2", "repetitions: 1").replace("jsonl}", "jsonl, limit: 1}")
    told = call("compare", str(write_sweep(tmp_path, text)), "--output", str(tmp_path / "out"))
    code = "own_reward:Greenness and own_operator:Tournament"
    assert (
        f"\nmine: the cost in images is without {code}, which nobody counts; the seconds have it.\n" in told
    )
    assert json.loads((tmp_path / "out" / "table.json").read_text())["not counted"] == {"mine": code}
    # Of one prompt there is no standard error: a point without a bar.
    assert (tmp_path / "out" / "frontier.png").is_file()


def test_grids_are_all_combinations(tmp_path: Path) -> None:
    _, found = read_sweep(write_sweep(tmp_path, GRID), tmp_path)
    assert [one.name for one in found] == [f"n={n}, lambda={share}" for n in (2, 4) for share in (1, 10)]
    assert [job.seed for job in found[0].jobs] == [0, 1, 2]
    assert len({job.output.path for one in found for job in one.jobs}) == 12
    assert {one.job.strategy.plan for one in found} == {"published"}


def test_estimates_are_those_of_groups_and_pairs() -> None:
    values = np.array([1.0, 0.0, 1.0, 1.0])
    assert grouped_mean(values, ONE_GROUP).mean == 0.75
    assert grouped_mean(values, ONE_GROUP).standard_error == pytest.approx(np.std(values, ddof=1) / 2)
    assert grouped_mean(values, np.array([0, 0, 0, 1])).mean == pytest.approx((2 / 3 + 1) / 2)
    random = np.random.default_rng(0)
    control = random.random(400)
    better = control + 0.1 + 0.2 * random.standard_normal(400)
    found = interval(better - control, random=np.random.default_rng(1))
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx((better - control).mean())
    width = found.high - found.low
    assert width == pytest.approx(2 * 1.96 * (better - control).std() / 20, rel=0.1)
    few = interval((better - control)[:40], random=np.random.default_rng(1))
    assert few.high - few.low > width
    fixed = interval(np.array([0.25, 0.25]), random=np.random.default_rng(1))
    assert f"{fixed:+.3f}" == "+0.250 [+0.250, +0.250]"
    one = interval(np.full(5, 0.25), random=np.random.default_rng(1), texts=np.zeros(5, dtype=np.int64))
    assert f"{one:+.3f}" == "+0.250 [+nan, +nan]", "five images of one text say nothing of other texts"
    groups = np.array([0, 0, 1])
    alone = interval(np.array([0.0, 1.0, 1.0]), random=np.random.default_rng(1), groups=groups)
    assert alone.mean == 0.75
    assert np.isnan([alone.low, alone.high]).all(), "nor does a group of one prompt"


def test_texts_are_numbered_in_the_memory_of_their_numbers() -> None:
    """An array of texts is as wide as the longest: one page of text among 200,000 prompts took gigabytes."""
    texts = ["a" * 10**6, *(f"a ring {place % 500}" for place in range(1000))]
    tracemalloc.start()
    found = text_numbers(texts)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10**6
    assert found.tolist() == [0, *range(1, 501), *range(1, 501)]


def test_prompts_that_say_the_same_are_drawn_together() -> None:
    """Four images of each of fifty texts, which are hard or easy: they are fifty observations, not 200."""
    random = np.random.default_rng(0)
    of_text = random.random(50)
    values, texts = np.repeat(of_text, 4), np.repeat(np.arange(50), 4)
    alone = interval(of_text, random=np.random.default_rng(1))
    together = interval(values, random=np.random.default_rng(1), texts=texts)
    assert together.mean == pytest.approx(alone.mean)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    naive = interval(values, random=np.random.default_rng(1))
    assert together.high - together.low > 1.8 * (naive.high - naive.low)
    expected = grouped_mean(of_text).standard_error
    assert grouped_mean(values, texts=texts).standard_error == pytest.approx(expected)
    shuffled = random.permutation(200)
    assert grouped_mean(values[shuffled], texts=texts[shuffled]).standard_error == pytest.approx(expected)
    # A text that is in two groups counts in each.
    halves = np.tile([0, 0, 1, 1], 50)
    assert grouped_mean(values, halves, texts).mean == pytest.approx(alone.mean)


def test_the_table_counts_failures_and_leaves_the_unknown_out() -> None:
    def outcomes(name: str, score: float, failed: int) -> Outcomes:
        values = np.array([score, 0.0, 1.0, 1.0])
        return Outcomes(
            name=name, scores={"judge": values}, reward=values, images=math.nan, seconds=1.0, failed=failed
        )

    lines = compare(
        [outcomes("a", 1.0, 0), outcomes("b", 0.0, 1)], control="a", groups={"judge": ONE_GROUP}, published={}
    )
    head, rows = table(lines, control="a")
    assert head[-1] == "failed" and [row[-1] for row in rows] == ["0", "1"]
    assert rows[0][1] == "" and "published" not in " ".join(head)
    assert rows[1][5].startswith("-0.2500 [")
    assert markdown(head, rows).count("\n") == 4


def test_charts_hold_their_points(tmp_path: Path) -> None:
    series = Series(
        name="a, b", x=[1, 2, 4], y=[0.5, 0.7, 0.9], error=[0.1, 0.1, 0.1], labels=["<1>", "", ""]
    )
    chart = Chart(title="t", x_label="x", y_label="y", series=[series], logarithmic=True)
    svg, png, csv = chart.write(tmp_path / "chart")
    assert svg.read_text().count("<circle") == 3 + 1 and "&lt;1&gt;" in svg.read_text()
    assert len(np.unique(np.asarray(Image.open(png)).reshape(-1, 3), axis=0)) > 5
    assert csv.read_text().splitlines()[1] == '"a, b",1,0.5,0.1,<1>'
    with pytest.raises(ValueError, match="expected points"):
        Chart(title="t", x_label="x", y_label="y").write(tmp_path / "none")


def test_prompts_that_an_evaluator_does_not_judge_count_nowhere() -> None:
    def outcomes(name: str, *scores: float) -> Outcomes:
        values = np.array(scores)
        return Outcomes(name=name, scores={"judge": values}, reward=values, images=1.0, seconds=1.0)

    both = [outcomes("a", 0.25, 0.0, 0.75, 0.0), outcomes("b", 0.5, 0.0, 1.0, 9.0)]
    groups = {"judge": np.array([0, -1, 0, -1])}
    a, b = compare(both, control="a", groups=groups, published={})
    assert a.scores["judge"].mean == 0.5 and a.scores["judge"].standard_error == 0.25
    assert b.differences["judge"].mean == b.differences["judge"].high == 0.25


COMPBENCH = """
name: small
base: {model: {name: shapes, device: cpu}, prompts: {path: HERE/drawn.txt}, cluster: {in_process: true}}
control: raw
evaluators:
  - t2i-compbench=HERE/chunks.jsonl:HERE/blip
  - t2i-compbench-clip=HERE/non_spatial_val.txt:HERE/clip
  - t2i-compbench-objects=HERE/spatial_val.txt:HERE/detector
  - clip-score=HERE/clip
variants: {raw: {strategy: {name: raw}}, best-of-2: {strategy: {name: best-of-n, n: 2}}}
published: {raw: {t2i-compbench color: 0.5}}
"""


DRAWN = ["a red circle", "a blue ring", "a cyan moon", "a ring", "a dog on the left of a cat", "a cross"]


def test_t2i_compbench_is_a_column_a_category_as_evaluate_says_it(tmp_path: Path) -> None:
    save_blip(tmp_path / "blip")
    save_clip(tmp_path / "clip")
    save_mmdet(tmp_path / "detector", mmdet_weights(tiny_mask2former()))
    (tmp_path / "drawn.txt").write_text("\n".join(DRAWN))
    chunks = [("color", DRAWN[0]), ("color", DRAWN[1]), ("shape", DRAWN[2]), ("texture", "never drawn")]
    lines = [{"prompt": text, "category": group, "chunks": [text]} for group, text in chunks]
    (tmp_path / "chunks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "non_spatial_val.txt").write_text(f"{DRAWN[3]}\nnever drawn\n{DRAWN[0]}\n")
    (tmp_path / "spatial_val.txt").write_text(f"{DRAWN[4]}\n")
    file, output = write_sweep(tmp_path, COMPBENCH), tmp_path / "out"
    call("compare", str(file), "--output", str(output), "--device", "cpu")
    rows = json.loads((output / "table.json").read_text())["rows"]
    spatial = "spatial, not comparable with UniDet"
    columns = ["t2i-compbench color", "t2i-compbench shape", "t2i-compbench-clip non-spatial"]
    assert list(rows[0]["scores"]) == [*columns, f"t2i-compbench-objects {spatial}", "clip-score"]
    for row in rows:
        found = {name: (one["mean"], one["standard_error"]) for name, one in row["scores"].items()}
        del found["clip-score"]
        folder = str(output / row["variant"] / "repetition-0")
        for name, questions, judge in (
            ("t2i-compbench", "chunks.jsonl", ("--judge", "blip")),
            ("t2i-compbench-clip", "non_spatial_val.txt", ("--clip", "clip")),
            ("t2i-compbench-objects", "spatial_val.txt", ("--detector", "detector")),
        ):
            command = ["evaluate", name, folder, "--questions", str(tmp_path / questions), judge[0]]
            told = tmp_path / "told.json"
            call(*command, str(tmp_path / judge[1]), "--device", "cpu", "--json", str(told))
            for one in json.loads(told.read_text())["scores"]:
                if f"{name} {one['name']}" in found:
                    mean, error = found.pop(f"{name} {one['name']}")
                    assert mean == pytest.approx(one["mean"], rel=1e-5)
                    expected = one["standard_error"]  # None of one prompt
                    assert error == (expected and pytest.approx(expected, rel=1e-4))
        assert not found
    assert {row["scores"]["t2i-compbench color"]["mean"] for row in rows} != {0.0}
    outcomes = pq.read_table(output / "outcomes.parquet").to_pylist()
    judged = [row for row in outcomes if row["t2i-compbench-clip non-spatial"] is not None]
    assert [row["prompt"] for row in judged] == 2 * [DRAWN[0], DRAWN[3]]
    for row in judged:
        assert row["t2i-compbench-clip non-spatial"] == pytest.approx(row["clip-score"], rel=1e-5)
    assert "| t2i-compbench color published |" in (output / "table.md").read_text()
