"""Plans replayed on a pool: what the engine would have done, and what a pool cannot answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.prompts import make_prompts
from tests.support.tiny_model import TINY_SCHEDULE, TinyExtractor, TinyModel, TinyReward
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.engine.local import search_prompt
from ttsvar_ray.results import PromptResult
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.replay import Trajectories, replay_plan, trajectories_needed
from ttsvar_ray.search.strategy import SelectionSetting, compile_plan

SCALES = (4, 6, 8)


def selections(*operators: str) -> list[SelectionSetting]:
    return [
        SelectionSetting(scale=scale, operator=name) for scale, name in zip(SCALES, operators, strict=False)
    ]


def plan_of(schedule: list[int], *operators: str, **settings: Any) -> Plan:
    return compile_plan(
        scale_schedule=TINY_SCHEDULE, batch_schedule=schedule, selections=selections(*operators), **settings
    )


def run(plan: Plan) -> PromptResult:
    engine = Engine(
        model=TinyModel(),
        reward=TinyReward(),
        extractor=TinyExtractor(),
        plan=plan,
        run_seed=3,
        settings=EngineSettings(),
    )
    (prompt,) = make_prompts(1)
    outcome = search_prompt(prompt, plan=plan, engine=engine, run_seed=3)
    assert isinstance(outcome, PromptResult)
    return outcome


@pytest.fixture(scope="module")
def pool() -> Trajectories:
    """Eight trajectories, scored at some scales; nothing is dropped."""
    outcome = run(plan_of([8] * 13, "keep", "keep", "keep"))
    images = sorted(outcome.images, key=lambda image: image.lineage[-1])
    return Trajectories(scales=(*SCALES, 12), rewards=np.array([one.reward_history for one in images]))


def test_a_plan_that_drops_is_replayed_as_the_engine_ran_it(pool: Trajectories) -> None:
    plan = plan_of([8, 8, 8, 8, 8, 8, 3, 3, 3, 3, 3, 3, 3], "keep", "top-k")
    outcome = run(plan)
    replayed = replay_plan(plan, pool, prompt_key="x#0", order=range(8))
    (first, *_) = outcome.trace[1:]
    kept = pool.rewards[:, 1].argsort()[::-1][:3]
    assert sorted(first.ancestor_index) == sorted(kept.tolist())
    assert replayed.best in kept
    assert replayed.best == max(kept, key=lambda slot: pool.rewards[slot, -1])
    assert replayed.trajectories == outcome.trajectories == (8, 8, 3)
    assert (replayed.repeats, replayed.rounds) == (0, 1)


def test_rounds_take_other_trajectories_until_one_is_good_enough(pool: Trajectories) -> None:
    final = pool.rewards[:, -1]
    plan = compile_plan(
        scale_schedule=TINY_SCHEDULE, strategy="adaptive", stop_at=float(final.max()), max_rounds=8
    )
    assert trajectories_needed(plan) == 8
    replayed = replay_plan(plan, pool, prompt_key="x#0", order=range(8))
    assert replayed.best == final.argmax()
    assert replayed.rounds == final.argmax() + 1
    turned = [int(final.argmax()), *(slot for slot in range(8) if slot != final.argmax())]
    assert replay_plan(plan, pool, prompt_key="x#0", order=turned).rounds == 1
    all_given_up = compile_plan(
        scale_schedule=TINY_SCHEDULE, strategy="adaptive", stop_at=0.0, reject_below={6: 1e6}, max_rounds=8
    )
    replayed = replay_plan(all_given_up, pool, prompt_key="x#0", order=range(8))
    assert replayed.best == pool.rewards[:, 1].argmax()
    assert replayed.trajectories == (8, 1)


def test_a_trajectory_kept_twice_is_an_approximation_that_says_so(pool: Trajectories) -> None:
    plan = plan_of([8] * 4 + [8] * 9, "resample", lambda_=1000.0)
    assert replay_plan(plan, pool, prompt_key="x#0", order=range(8)).repeats == 7


def test_what_the_pool_has_not_seen_is_said(pool: Trajectories) -> None:
    deeper = compile_plan(
        scale_schedule=TINY_SCHEDULE,
        batch_schedule=[8] * 9 + [1] * 4,
        selections=[SelectionSetting(scale=9, operator="top-k")],
    )
    with pytest.raises(ValueError, match=r"scales 0 to 9, and the pool was scored at \[4, 6, 8, 12\]"):
        replay_plan(deeper, pool, prompt_key="x#0", order=range(8))
    clustered = plan_of([8] * 4 + [4] * 9, "cluster")
    with pytest.raises(ValueError, match=r"embedded at \[\]"):
        replay_plan(clustered, pool, prompt_key="x#0", order=range(8))
    with pytest.raises(ValueError, match="expected at least 8 trajectories for this plan, got 4"):
        replay_plan(plan_of([8] * 13, "keep"), pool, prompt_key="x#0", order=range(4))
