"""A small search of the built-in model, in this process."""

from __future__ import annotations

from ttsvar_ray import Search

PROMPT = "a photo of a ring and a circle"
SMALL = {
    "strategy.batch_schedule": [3] * 5 + [2] * 3 + [1] * 5,
    "strategy.cluster_scales": [5],
    "strategy.resample_scales": [8],
}


def small_search() -> Search:
    return Search("shapes", device="cpu", seed=3, keep="all", settings={**SMALL, "engine.threads": 1})
