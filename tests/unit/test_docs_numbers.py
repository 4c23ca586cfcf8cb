"""Tables of README and docs that come from committed files have their numbers, to the digits they show."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks import claims
from benchmarks.scaling import summary
from benchmarks.shapes_rows import over_prompts

ROOT = Path(__file__).parents[2]
DOCS, CURVES, RESULTS = ROOT / "docs", ROOT / "docs" / "curves", ROOT / "benchmarks" / "results"


def table(page: Path, heading: str) -> dict[str, list[str]]:
    """Return the other cells of the first table whose head begins with `heading`, by each line's first."""
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(heading)}.*\n\|[-| :]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found, f"{page.name}: no table {heading!r}"
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in found[1].splitlines()]
    return {first: rest for first, *rest in lines}


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def is_rounded(shown: str, value: float) -> bool:
    """Return whether `shown` is a number to its digits; of a tie either neighbour is."""
    return abs(float(shown) - value) <= 0.5 * 10.0 ** -len(shown.partition(".")[2]) + 1e-9


def with_interval(values: list[float], sign: str = "") -> str:
    return f"{values[0]:{sign}.3f} [{values[1]:{sign}.3f}, {values[2]:{sign}.3f}]"


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("frontier", "## The frontier"),
        ("frontier_seed_1", "## A second training seed"),
        ("frontier_rounds", "## Sixteen rounds"),
        ("frontier_rounds_seed_1", "## Sixteen rounds with the second training seed"),
        ("frontier_rounds_tuning", "## The tuning prompts again"),
        ("frontier_rounds_reward", "## Thresholds that the reward chose"),
        ("frontier_hard", "## The harder set"),
        ("frontier_three", "## The harder set with three objects"),
        ("frontier_rounds_hard", "## Sixteen rounds on the harder set"),
    ],
)
def test_the_frontier_is_that_of_its_files(name: str, heading: str) -> None:
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    section = page[page.index(f"\n{heading}\n") :]
    lines = re.findall(
        r"^\| (.+?) \| (pool|run|replayed) \| (.+) \|$", section.split("\n## ")[1], re.MULTILINE
    )
    rows = {(row["method"], row["how"]): row for row in read(CURVES / f"{name}.json")["rows"]}
    assert len(lines) >= 4
    outcomes = pq.read_table(CURVES / f"{name}.parquet").to_pandas().groupby(["method", "how"])
    correct = {key: own.set_index("row").sort_index()["correct"] for key, own in outcomes}
    best = correct.get(("best-of-8", "pool"))
    for method, how, rest in lines:
        row, own = rows[method, how], correct[method, how]
        minus = ""
        if best is not None and method != "best-of-8":
            both = own.index.intersection(best.index)
            minus = f"{over_prompts(own[both].to_numpy() - best[both].to_numpy()):+.3f}"
        seconds = row["cpu_seconds"]
        expected = [
            str(row["prompts"]),
            f"{row['cost']:.2f}",
            f"{row['tokens']:.2f}",
            "" if seconds is None else f"{seconds:.2f}",
            with_interval([row["accuracy"], *row["interval"]]),
            minus,
        ]
        cells = [cell.strip() for cell in rest.split("|")]
        assert cells[:6] == expected, (method, how)
        assert cells[7] == "" if row["reward"] is None else is_rounded(cells[7], row["reward"]), (method, how)
        assert own.mean() == pytest.approx(row["accuracy"]) and len(own) == row["prompts"]


def test_the_claims_are_those_of_the_outcomes_and_of_other_tables() -> None:
    page = (DOCS / "paper.md").read_text(encoding="utf-8")
    assert claims.table().strip() in page, "python -m benchmarks.claims prints it"
    for name, text in claims.sweeps().items():
        assert text.strip() in page, f"python -m benchmarks.claims prints {name}"
    assert claims.rewards().strip() in page, "python -m benchmarks.claims prints it"
    section, rest = page.split("\n## Sweeps\n")
    elsewhere = rest + (DOCS / "results.md").read_text(encoding="utf-8")
    by_hand = section[section.index("| TTS-VAR beats best-of-N at equal FLOPs") :]
    numbers = re.findall(r"[+-]0\.\d+ \[[^]]+\]|[+-]?0\.\d+ ± 0\.\d+", by_hand)
    assert len(numbers) > 8
    assert [number for number in numbers if number not in elsewhere] == []


def test_the_readme_has_rows_of_the_frontier() -> None:
    rows, correct = {}, {}
    for name in ("frontier", "frontier_rounds"):
        rows |= {(row["method"], row["how"]): row for row in read(CURVES / f"{name}.json")["rows"]}
        outcomes = pq.read_table(CURVES / f"{name}.parquet").to_pandas().groupby(["method", "how"])
        correct |= {key: own.set_index("row").sort_index()["correct"] for key, own in outcomes}
    best = correct["best-of-8", "pool"]
    shown = table(ROOT / "README.md", "| method | prompts | cost | accuracy |")
    assert len(shown) > 8
    for method, cells in shown.items():
        key = (method, "run" if (method, "run") in rows else "pool")
        row, own = rows[key], correct[key]
        both = own.index.intersection(best.index)
        minus = over_prompts(own[both].to_numpy() - best[both].to_numpy())
        numbers = with_interval([row["accuracy"], *row["interval"]])
        expected = [
            str(row["prompts"]),
            f"{row['cost']:.2f}",
            re.sub(r"\[(.+)\]", r"(\1)", numbers),
            "" if method == "best-of-8" else re.sub(r"\[(.+)\]", r"(\1)", f"{minus:+.3f}"),
        ]
        assert cells == expected, method


def test_the_differences_are_those_of_the_outcomes() -> None:
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    widths = [text.strip() for text in claims.by_text().strip().split("\n\n")]
    for printed in (
        claims.differences(),
        claims.seeds(),
        claims.rounds(),
        claims.late(),
        claims.by_reward(),
        *widths,
    ):
        assert printed.strip() in page, "python -m benchmarks.claims prints it"


def test_the_earlier_table_is_that_of_its_file() -> None:
    lines = table(DOCS / "results.md", "| method | tokens | FLOPs |")
    rows = {row["method"]: row for row in read(CURVES / "results.json")["rows"]}
    assert lines.keys() == rows.keys()
    for method, (tokens, flops, accuracy, _, _, *more) in lines.items():
        row = rows[method]
        assert (tokens, flops) == (f"{row['tokens']:.2f}", f"{row['flops']:.2f}"), method
        assert accuracy == f"{row['accuracy']:.3f} ± {row['standard_error']:.3f}", method
        if more:
            assert more[1:] == [f"{share:.2f}" for share in row["kinds"].values()], method


def test_the_ideas_are_those_of_their_file() -> None:
    lines = table(DOCS / "results.md", "| method | how | prompts | cost | accuracy | minus one cut |")
    rows = {row["method"]: row for row in read(CURVES / "ideas.json")["rows"]}
    for method, (how, prompts, cost, accuracy, minus_cut, minus_equal) in lines.items():
        row = rows[method]
        assert (how, prompts) == (row["how"], str(row["prompts"])) and is_rounded(cost, row["cost"]), method
        assert is_rounded(accuracy.split()[0], row["accuracy"]), method
        if "interval" not in row:
            continue
        assert accuracy == with_interval([row["accuracy"], *row["interval"]]), method
        assert minus_cut in ("", with_interval(row["minus_one_cut"], "+")), method
        assert minus_equal in ("", with_interval(row["minus_best_of_n"] or [0, 0, 0], "+")), method


def test_the_simulated_sizes_are_those_of_their_file() -> None:
    results = read(RESULTS / "scaling.json")["results"]
    printed = summary(dict(sorted(results.items(), key=lambda one: int(one[0]))))
    page = (DOCS / "scaling.md").read_text(encoding="utf-8")
    assert [line for line in printed.splitlines() if line[:3] != "| G" and line not in page] == []


def test_the_simulator_is_off_by_what_its_file_says() -> None:
    lines = table(DOCS / "scaling.md", "| workers | prompts | real")
    for one in read(RESULTS / "simulator_validation.json")["comparisons"]:
        assert lines[str(one["workers"])] == [
            str(one["prompts"]),
            f"{one['real_makespan_seconds']:.1f} s",
            f"{one['predicted_makespan_seconds']:.1f} s",
            f"{one['prediction_error']:.1%}".replace("%", " %"),
            f"{one['simulator_error']:.1%}".replace("%", " %"),
        ]


def test_orchestration_costs_what_its_file_says() -> None:
    lines = table(DOCS / "scaling.md", "| | engines computing")
    found = read(RESULTS / "orchestration.json")
    assert lines["in one process"][0] == f"{found['in_process']['steady']['computing_share']:.2%}".replace(
        "%", " %"
    )
    for one in found["through_ray"]:
        cells = lines[f"Ray, {one['workers']} worker{'s' if one['workers'] > 1 else ''}"]
        assert cells == [
            f"{one['steady']['computing_share']:.2%}".replace("%", " %"),
            f"{one['throughput_over_in_process']:.3f}",
        ]


FILES = {
    "PNG level 6": "png level 6",
    "PNG level 1": "png level 1",
    "PNG level 0": "png level 0",
    "WebP, lossless, least effort": "webp lossless, least effort (quality 100)",
    "WebP, lossless, most effort": "webp lossless, most effort",
    "WebP, quality 95": "webp quality 95",
    "JPEG, quality 95": "jpeg quality 95",
}


def test_image_files_cost_what_their_file_says() -> None:
    images = read(RESULTS / "image_files.json")["images"]
    lines = table(DOCS / "performance.md", "| 1024 x 1024, one CPU thread |")
    assert lines.keys() == FILES.keys()
    for name, cells in lines.items():
        for cell, kind in zip(cells, ("photo-like", "noise"), strict=False):
            one, (milliseconds, megabytes) = images[kind][FILES[name]], cell.split(", ")
            assert is_rounded(milliseconds, one["milliseconds"]), (name, kind)
            assert is_rounded(megabytes, one["megabytes"]), (name, kind)


def test_a_cpu_is_as_quick_as_its_file_says() -> None:
    found = read(RESULTS / "cpu_loop.json")
    lines = table(DOCS / "performance.md", "| one prompt | CPU seconds |")
    assert lines.keys() == found["rounds"][0].keys()
    for name, (*numbers, quick) in lines.items():
        own = [one[name] for one in found["rounds"]]
        for shown, key in zip(numbers, own[0], strict=True):
            assert is_rounded(shown, median(one[key] for one in own)), (name, key)
        if times := found["times as quick as the published loop"].get(name):
            rounds = ", ".join(f"{one:.2f}" for one in times["rounds"])
            assert quick == f"{times['median']:.2f} ({rounds})", name


def test_k_means_is_as_quick_and_tight_as_its_file_says() -> None:
    sizes = read(RESULTS / "k_means.json")["sizes"]
    lines = table(DOCS / "search.md", "| population to survivors | here |")
    assert lines.keys() == sizes.keys()
    for size, cells in lines.items():
        one = sizes[size]
        assert is_rounded(cells[0], one["milliseconds"]), size
        assert is_rounded(cells[1], one["scikit_learn_milliseconds"]), size
        shown = re.findall(r"(\d+) %", " ".join(cells[2:]))
        for share, name in zip(shown, ("equal", "tighter", "scikit_learn_tighter"), strict=True):
            assert is_rounded(share, 100 * one[name]), (size, name)


def test_precision_changes_what_its_file_says() -> None:
    (found,) = (
        one for name, one in read(RESULTS / "precision_h200.json").items() if name.startswith("built-in")
    )
    lines = table(DOCS / "rewards.md", "| | largest drift over the deviation |")
    for dtype, one in found.items():
        drift, pairs, best, same = lines[f"`{dtype}`"]
        assert is_rounded(drift, one["largest drift of a score over the deviation"]), dtype
        assert f"{pairs} of 7168" == one["pairs that change order"], dtype
        assert best == one["populations whose best image is the same"], dtype
        assert same == one["populations with the same 6 survivors of 8"], dtype


def test_components_turn_around_as_often_as_their_file_says() -> None:
    found = read(RESULTS / "component_sign.json")
    kinds = [
        found[f"opposite, {name}"]
        for name in ("built-in vision tower (trained)", "recorded DINOv2 (random weights)")
    ]
    for noise, cells in table(DOCS / "features.md", "| noise, up to |").items():
        level = f"noise up to {noise.split()[0]} levels"
        assert cells == [str(kind[level][rule]) for kind in kinds for rule in ("deterministic", "published")]
