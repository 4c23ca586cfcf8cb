"""Commands that the docs name and no other test runs still fit the package."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks.shapes_results import Method, job, prompt_flops
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
