"""The guarantee on the model that ships: bytes do not depend on packing, workers or spread (CPU)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.prompts import make_prompts
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.results import PromptResult
from ttsvar_ray.search.plan import Plan

SEED = 11


def search(
    *,
    rows: int,
    engines: int,
    spread: int,
    extractor: str = "auto",
    prompts: int = 2,
    sections: Mapping[str, Any] | None = None,
) -> dict[str, object]:
    config = JobConfig.model_validate(
        {
            "model": {"device": "cpu"},
            "strategy": {"plan": "published"},
            "features": {"extractor": extractor},
            "engine": {"micro_batch_rows": rows},
            "output": {"keep": "all"},
            "seed": SEED,
            **(sections or {}),
        }
    )
    job = resolve(config)
    plan: Plan = job.plan
    outcomes = run_local(
        make_prompts(prompts),
        plan=plan,
        engines=[build_engine(job) for _ in range(engines)],
        run_seed=SEED,
        settings=CoordinatorSettings(spread=spread, keep="all"),
    )
    content: dict[str, object] = {}
    for outcome in outcomes:
        assert isinstance(outcome, PromptResult), outcome
        choices = [(record.ancestor_index, record.rewards) for record in outcome.trace]
        content[outcome.prompt.key] = (outcome.images, choices)
    return content


@pytest.fixture(scope="module")
def expected() -> dict[str, object]:
    return search(rows=32, engines=1, spread=1)


@pytest.mark.parametrize(("rows", "engines", "spread"), [(5, 1, 1), (1, 1, 1), (8, 2, 2)])
def test_bytes_do_not_depend_on_packing_workers_or_spread(
    expected: dict[str, object], rows: int, engines: int, spread: int
) -> None:
    assert search(rows=rows, engines=engines, spread=spread) == expected


def test_nor_on_them_where_losers_are_cheap_and_trajectories_are_looked_at_otherwise() -> None:
    """Guidance that begins behind the cuts, rewards of feature maps, and of what trajectories come to."""
    sections: dict[str, Any] = {
        "strategy": {
            "batch_schedule": [5] * 4 + [3] * 2 + [2] * 7,
            "selections": [{"scale": 4, "operator": "top-k"}, {"scale": 6, "operator": "resample"}],
            "map_scales": [6],
            "look_ahead": {4: 8},
        },
        "sampling": {"guidance": [1.0] * 7 + [3.5] * 6},
    }
    alone = search(rows=32, engines=1, spread=1, sections=sections)
    assert search(rows=2, engines=2, spread=2, sections=sections) == alone


def test_a_joint_component_does_not_depend_on_packing_either() -> None:
    alone = search(rows=32, engines=1, spread=1, extractor="pca_all", prompts=1)
    shared = search(rows=5, engines=2, spread=2, extractor="pca_all", prompts=1)
    assert shared == alone
