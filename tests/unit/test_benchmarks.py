"""Commands that the docs name and no other test runs still fit the package."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmarks.shapes_results import SEARCHES, BestOfCurve, Method, best_of, job, prompt_flops
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
        for strategy in ({"name": "raw"}, {"name": "tts-var", "plan": "model", "n": 2})
    )
    assert search / raw == pytest.approx(6.62, rel=0.01), "docs/results.md"


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
        for method in SEARCHES
        if "without" in method.name or "cut" in method.name
    }
    assert [round(cost, 2) for cost in costs.values()] == [1.82, 2.41, 2.10]
