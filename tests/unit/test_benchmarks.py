"""Commands that the docs name and no other test runs still fit the package."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import shapes_results, shapes_rounds
from benchmarks.bench import MEASUREMENTS, table
from benchmarks.machine import commit
from benchmarks.shapes_methods import REPLAYED, RUN
from benchmarks.shapes_pieces import (
    Method,
    Share,
    job,
    load_pieces,
    load_pool,
    piece_path,
    pool_path,
    run_piece,
    run_pool,
)
from benchmarks.shapes_rows import BestOfCurve, best_of, markdown, prompt_flops, replayed_row, run_row
from recipes.shapes.prompt_set import HARD_SET
from ttsvar_ray.job.resolved import resolve

MODULES = sorted(
    f"{path.parent.name}.{path.stem}" if path.parent.name == "benchmarks" else f"recipes.shapes.{path.stem}"
    for folder in ("benchmarks", "recipes/shapes")
    for path in (Path(__file__).parents[2] / folder).glob("*.py")
    if not path.stem.startswith("__")
)


@pytest.mark.parametrize("module", MODULES)
def test_every_benchmark_and_recipe_can_be_imported(module: str) -> None:
    importlib.import_module(module)


def test_the_results_table_counts_every_decode_and_score() -> None:
    raw, search = (
        prompt_flops(resolve(job(Method(name="", strategy=strategy), "shapes", 0)))
        for strategy in ({"name": "raw"}, {"name": "tts-var", "plan": "published", "n": 2})
    )
    assert search / raw == pytest.approx(5.71, rel=0.01), "docs/results.md"


@pytest.mark.parametrize("size", range(1, 7))
def test_best_of_k_is_the_mean_over_all_subsets_of_the_pool(size: int) -> None:
    rng = np.random.default_rng(size)
    correct, rewards = rng.integers(0, 2, 6).astype(np.float64), rng.normal(size=6)
    chosen = [max(subset, key=lambda i: rewards[i]) for subset in itertools.combinations(range(6), size)]
    assert best_of(correct, rewards, size) == pytest.approx((correct[chosen].mean(), rewards[chosen].mean()))


def test_between_two_pool_sizes_lies_a_coin_toss_and_above_the_pool_nothing() -> None:
    curve = BestOfCurve(
        flops=np.array([1.0, 2.0, 3.0]), accuracy=np.array([[0.2], [0.6], [0.8]]), reward=np.zeros(3)
    )
    reached = [curve.at(cost) for cost in (1.0, 1.25, 3.0, 3.1)]
    assert [None if seen is None else round(float(seen[0]), 9) for seen in reached] == [0.2, 0.3, 0.8, None]


def test_the_controls_cost_what_their_populations_cost() -> None:
    one = prompt_flops(resolve(job(Method(name="", strategy={"name": "raw"}), "shapes", 0)))
    costs = {
        method.name: prompt_flops(resolve(job(method, "shapes", 0))) / one
        for method in RUN
        if "without" in method.name or "cut" in method.name
    }
    assert [round(cost, 2) for cost in costs.values()] == [2.10, 1.82, 2.41]


def test_every_plan_that_is_replayed_keeps_no_trajectory_twice() -> None:
    for method in REPLAYED:
        plan = resolve(job(method, "shapes", 0)).plan
        drawn = [one for one in plan.selections if one.operator.repeats and one.survivors > 1]
        assert not drawn, method.name


def test_the_harder_set_has_prompts_and_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["x", "--set", "hard", "--per-kind", "8", "--print", "--work-dir", str(tmp_path)]
    )
    seen: list[Share] = []
    monkeypatch.setattr(shapes_results, "load_pool", lambda folder, shares: seen.extend(shares) or [])
    monkeypatch.setattr(shapes_results, "draw", lambda rows, picture: None)
    shapes_results.main()
    assert [path.name for path in tmp_path.iterdir()] == ["hard"]
    kinds = {(share.prompts_of, caption.kind) for share in seen for _, caption in share.prompts()}
    assert kinds == {(name, kind) for name in ("reporting", "tuning") for kind in HARD_SET}


def test_what_is_dear_is_asked_last_and_of_the_first_share_alone(tmp_path: Path) -> None:
    options = argparse.Namespace(
        work_dir=tmp_path,
        model="shapes",
        best_of=16,
        per_kind=8,
        tuning_per_kind=2,
        shares=4,
        set="genevals-kinds",
    )
    pieces: list[Any] = shapes_results.pieces_of(options, RUN)
    asked = [(piece.args[0], piece.args[3].index) for piece in pieces if piece.func is run_piece]
    shares = {method.name: [at for one, at in asked if one is method] for method in RUN}
    assert shares["one cut: 8, the best at 6"] == [0, 1, 2, 3]
    assert shares["TTS-VAR, published plan, N=4"] == [0]
    assert [method.is_side for method, _ in asked] == sorted(method.is_side for method, _ in asked)


def test_a_replayed_cut_costs_what_the_cut_costs_that_runs(tmp_path: Path) -> None:
    share = Share(prompts_of="tuning", per_kind=1, index=0, of=3)
    run_pool("shapes", 7, share, pool_path(tmp_path, share))
    pool = load_pool(tmp_path, [share])
    assert [prompt.row for prompt in pool] == [0, 3]
    cut = RUN[0]
    run_piece(cut, "shapes", 7, share, piece_path(tmp_path, cut, 0, share))
    ran = run_row(cut, "shapes", load_pieces(tmp_path, cut, 0, [share]))
    replayed = replayed_row(cut, "shapes", pool)
    np.testing.assert_allclose(ran.cost, replayed.cost)
    assert ran.tokens == pytest.approx(replayed.tokens)
    assert ran.seconds > 0
    assert "| one cut: 8, the best at 6 | replayed | 2 | 2.10 |" in markdown([ran, replayed], None)


def test_a_machine_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == "unknown"


def test_the_bench_table_says_what_the_committed_files_say() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    results = {name: json.loads((folder / f"{name}.json").read_text()) for name in MEASUREMENTS}
    lines = table(results)
    assert any(line.startswith("png level 6, 1024 x 1024") and line.endswith("MB") for line in lines)
    assert any("of peak" in line for line in lines)
    for found in results.values():
        assert {"cpu", "commit", "machine_was_shared", "versions"} <= found["machine"].keys()


def test_thresholds_of_sixteen_rounds_come_from_the_pool_and_run_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    final = rng.normal(size=(60, 16))
    rewards = final[:, :, None] + rng.normal(scale=0.3, size=(60, 16, 13)) * (np.arange(13) < 12)
    pool = {"rewards": rewards.astype(np.float32), "correct": final > 0, "texts": np.arange(60).astype(str)}
    np.savez(tmp_path / "pool.npz", **pool)

    found = shapes_rounds.chosen(tmp_path / "pool.npz", "shapes", (1.5, 2.0), "accuracy")
    searches = shapes_rounds.methods(found, "accuracy")

    assert [search.name for search in searches] == [
        "adaptive, 16 rounds, budget 1.5",
        "adaptive, 16 rounds, budget 2",
        "adaptive, 16 rounds, budget 1.5, guided up to 9",
        "adaptive, 16 rounds, budget 2, guided up to 9",
    ]
    for search, one in zip(searches, [*found.values()] * 2, strict=True):
        rounds = resolve(job(search, "shapes", 0)).plan.rounds
        assert rounds.most == 16 and rounds.stop_at == pytest.approx(one.rounds.stop_at, abs=1e-4)
        assert dict(rounds.reject_below) == pytest.approx(dict(one.rounds.reject_below), abs=1e-4)
    assert resolve(job(searches[2], "shapes", 0)).config.sampling.guidance[9:] == (3.5, 1.0, 1.0, 1.0)
    by_reward = shapes_rounds.chosen(tmp_path / "pool.npz", "shapes", (1.5,), "reward")
    assert by_reward[1.5].chosen_on.quality.mean() == by_reward[1.5].chosen_on.reward.mean()
    assert by_reward[1.5].chosen_on.reward.mean() >= found[1.5].chosen_on.reward.mean()
    assert shapes_rounds.methods(by_reward, "reward")[0].name.endswith("budget 1.5, chosen by reward")
