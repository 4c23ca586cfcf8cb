"""The whole search without a cluster: any engines, any packing, one result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.plans import raw_plan, tts_var_plan
from tests.support.prompts import make_prompts
from tests.support.tiny_model import TINY_SCHEDULE, TinyExtractor, TinyMapReward, TinyModel, TinyReward
from ttsvar_ray.coordination.settings import CoordinatorSettings, Spread
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.engine.local import run_local, search_prompt
from ttsvar_ray.engine.rows import unpack_rows
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.search.describe import selector_demand
from ttsvar_ray.search.plan import FinalChoice, Plan
from ttsvar_ray.search.strategy import SelectionSetting, compile_plan
from ttsvar_ray.types import Prompt


def search(
    prompts: list[Prompt],
    *,
    plan: Plan,
    engines: int = 1,
    rows: int = 16,
    spread: Spread = "auto",
    model: TinyModel | None = None,
) -> dict[str, PromptResult | PromptFailure]:
    workers = [
        Engine(
            model=model or TinyModel(),
            reward=TinyReward(),
            extractor=TinyExtractor(),
            plan=plan,
            run_seed=3,
            settings=EngineSettings(micro_batch_rows=rows),
            map_reward=TinyMapReward(),
        )
        for _ in range(engines)
    ]
    settings = CoordinatorSettings(spread=spread, keep="all", trace_bits=True)
    outcomes = run_local(iter(prompts), plan=plan, engines=workers, run_seed=3, settings=settings)
    results = {outcome.prompt.key: outcome for outcome in outcomes}
    assert all(engine.held_prompts == 0 for engine in workers), "everything is released at the end"
    return results


def content(outcomes: dict[str, PromptResult | PromptFailure]) -> dict[str, tuple[Any, ...]]:
    """Return what must not depend on where and how it was computed."""
    return {
        key: (
            outcome.images,
            tuple((r.round_index, r.scale_index, r.ancestor_index, r.rewards, r.bits) for r in outcome.trace),
            (outcome.rounds, outcome.stopped, outcome.trajectories),
        )
        for key, outcome in outcomes.items()
        if isinstance(outcome, PromptResult)
    }


@pytest.mark.parametrize(
    ("engines", "rows", "spread"), [(1, 3, "auto"), (2, 8, 1), (2, 4, 2), (3, 5, "auto"), (4, 16, 4)]
)
def test_engines_packing_and_spread_do_not_change_results(engines: int, rows: int, spread: Spread) -> None:
    prompts = make_prompts(9)
    expected = content(search(prompts, plan=tts_var_plan(), rows=64))
    assert len(expected) == 9
    bits = [bits for _, trace, _ in expected.values() for *_, population in trace for bits in population]
    assert bits and all(all(scale) for scale in bits), "the table of the search has bits to compare"
    assert (
        content(search(prompts, plan=tts_var_plan(), engines=engines, rows=rows, spread=spread)) == expected
    )


@pytest.mark.parametrize(("engines", "rows", "spread"), [(1, 3, "auto"), (2, 8, 1), (3, 4, 3)])
def test_nor_do_they_where_trajectories_are_looked_at_otherwise(
    engines: int, rows: int, spread: Spread
) -> None:
    plan, prompts = compile_plan(scale_schedule=TINY_SCHEDULE, **LOOKING), make_prompts(5)
    expected = content(search(prompts, plan=plan, rows=64))
    assert content(search(prompts, plan=plan, engines=engines, rows=rows, spread=spread)) == expected


def test_a_look_ahead_judges_what_it_comes_to_and_changes_no_trajectory() -> None:
    prompts = make_prompts(3)
    settings = {"selections": [SelectionSetting(scale=6, operator="keep")], "batch_schedule": (3,) * 13}
    plain, ahead, on_map = (
        search(prompts, plan=compile_plan(scale_schedule=TINY_SCHEDULE, **settings, **looks), rows=5)
        for looks in ({}, {"look_ahead": {6: 12}}, {"map_scales": (6,)})
    )
    model, reward = TinyModel(), TinyReward()
    for prompt in prompts:
        outcomes = [one[prompt.key] for one in (plain, ahead, on_map)]
        assert len({outcome.images[0].image for outcome in outcomes}) == 1  # type: ignore[union-attr]
        traces = [outcome.trace[0] for outcome in outcomes]  # type: ignore[union-attr]
        assert traces[0].bits == traces[1].bits == traces[2].bits
        bits = unpack_rows(traces[0].bits, scale_schedule=TINY_SCHEDULE, bits_per_token=model.bits_per_token)
        start = model.start(model.encode_text([prompt.model_text]), [0] * 3)
        state = model.replay(start, [np.stack(scale) for scale in bits])
        texts = [prompt.text] * 3
        expected = reward.score(model.decode(model.look_ahead(state, 12)), texts)
        assert traces[1].rewards == tuple(expected.tolist()) != traces[0].rewards
        assert traces[2].rewards == tuple(
            TinyMapReward().score_maps(model.feature_map(state), texts).tolist()
        )


def test_maps_that_are_scored_are_not_decoded() -> None:
    model = TinyModel()
    plan = compile_plan(scale_schedule=TINY_SCHEDULE, **LOOKING)
    assert len(search(make_prompts(1), plan=plan, model=model)) == 1
    decoded = [rows for name, rows in model.calls if name == "decode"]
    assert decoded == [4, 1], (
        "a look ahead of four, the final image; none of the eight whose maps were scored"
    )
    assert selector_demand(plan).decodes == sum(decoded)
    assert selector_demand(plan).maps == 8


def test_all_survivors_are_ranked_by_reward() -> None:
    (outcome,) = search(make_prompts(1), plan=raw_plan(4)).values()
    assert isinstance(outcome, PromptResult)
    rewards = [image.reward for image in outcome.images]
    assert len(rewards) == 4 and rewards == sorted(rewards, reverse=True)


def test_a_failing_prompt_is_given_up_and_the_others_finish() -> None:
    prompts = make_prompts(4)
    prompts[2] = replace(prompts[2], text="boom")
    outcomes = search(prompts, plan=tts_var_plan(), engines=2, model=TinyModel(fail_on="boom"))
    assert sorted(outcomes) == [p.key for p in prompts]
    failed = [o for o in outcomes.values() if isinstance(o, PromptFailure)]
    assert [f.prompt.key for f in failed] == ["p0002#0"]
    assert "text cannot be encoded" in failed[0].errors[0]


def test_no_prompts_give_no_outcomes() -> None:
    assert search([], plan=tts_var_plan()) == {}


LOOKING: dict[str, Any] = {
    "batch_schedule": (8, 8, 8, 8, 4, 4, 4, 4, 1, 1, 1, 1, 1),
    "selections": [
        SelectionSetting(scale=4, operator="top-k"),
        SelectionSetting(scale=8, operator="resample"),
    ],
    "map_scales": (4,),
    "look_ahead": {8: 11},
}


def placed(*operators: str) -> list[SelectionSetting]:
    return [
        SelectionSetting(scale=scale, operator=name) for scale, name in zip((4, 8), operators, strict=True)
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"selections": placed("top-k", "diverse-top-k")},
        {"selections": placed("farthest-point", "cluster-best")},
        {"selections": placed("dpp", "density")},
        {"selections": placed("likelihood", "top-k")},
        {"final": FinalChoice(mean_of=(7, 10, 12))},
        {"selections": placed("top-k", "resample"), "map_scales": (8,), "look_ahead": {4: 9}},
        {"final": FinalChoice(ties_by_likelihood=True)},
        # Some rounds are given up; some prompts end with nothing else, some early, some after all rounds.
        {"strategy": "adaptive", "reject_below": {6: -1.96}, "stop_at": -1.0, "max_rounds": 3, "n": 1},
        {
            "strategy": "adaptive",
            "selections": placed("diverse-top-k", "top-k"),
            "reject_below": {4: -1.5, 6: -1.0},
            "stop_at": -0.3,
            "max_rounds": 3,
            "growth": (1, 2),
        },
    ],
)
def test_the_loop_of_the_paper_finds_what_the_coordinator_finds(settings: dict[str, Any]) -> None:
    plan = compile_plan(**{"scale_schedule": TINY_SCHEDULE, "n": 2, **settings})
    prompts = make_prompts(6)
    expected = search(prompts, plan=plan, engines=2, rows=5)
    engine = Engine(
        model=TinyModel(),
        reward=TinyReward(),
        extractor=TinyExtractor(),
        plan=plan,
        run_seed=3,
        settings=EngineSettings(micro_batch_rows=5),
        map_reward=TinyMapReward(),
    )
    found = {p.key: search_prompt(p, plan=plan, engine=engine, run_seed=3) for p in prompts}
    assert content(found) == content(expected)
    assert len(content(found)) == 6
    ends = {outcome.stopped for outcome in found.values() if isinstance(outcome, PromptResult)}
    assert ends == ({"satisfied", "rounds", "abandoned"} if plan.strategy == "adaptive" else {"rounds"})
    assert engine.held_prompts == 0
    numbers = [[dict(record.numbers) for record in outcome.trace] for outcome in found.values()]  # type: ignore[union-attr]
    assert numbers == [[dict(r.numbers) for r in expected[key].trace] for key in found]  # type: ignore[union-attr]


def test_the_loop_says_why_there_are_no_images() -> None:
    prompt = replace(make_prompts(1)[0], text="boom")
    plan = tts_var_plan()
    engine = Engine(
        model=TinyModel(fail_on="boom"),
        reward=TinyReward(),
        extractor=TinyExtractor(),
        plan=plan,
        run_seed=3,
        settings=EngineSettings(),
    )
    failed = search_prompt(prompt, plan=plan, engine=engine, run_seed=3)
    assert isinstance(failed, PromptFailure)
    assert "text cannot be encoded" in failed.errors[0]
    assert engine.held_prompts == 0


@pytest.mark.parametrize(("engines", "rows", "spread"), [(1, 64, "auto"), (1, 2, "auto"), (3, 2, 3)])
def test_one_file_a_shard_is_enough_where_the_best_is_kept(engines: int, rows: int, spread: Spread) -> None:
    plan, prompts = raw_plan(5), make_prompts(4)
    written: list[int] = []

    class Counted(Engine):
        def run_segment(self, tasks: Any, **options: Any) -> Any:
            results = super().run_segment(tasks, **options)
            written.extend(sum(i.payload is not None for i in r.images) for r in results)
            return results

    workers = [
        Counted(
            model=TinyModel(),
            reward=TinyReward(),
            extractor=None,
            plan=plan,
            run_seed=3,
            settings=EngineSettings(micro_batch_rows=rows, keep="best"),
        )
        for _ in range(engines)
    ]
    settings = CoordinatorSettings(spread=spread, keep="best")
    found = list(run_local(iter(prompts), plan=plan, engines=workers, run_seed=3, settings=settings))
    everything = search(prompts, plan=plan)
    for outcome in found:
        assert isinstance(outcome, PromptResult)
        assert outcome.images == everything[outcome.prompt.key].images[:1]
    assert set(written) == {1}, "one a shard, however many trajectories it has"


def test_uniforms_drawn_ahead_are_the_same_numbers() -> None:
    plan, prompts = tts_var_plan(), make_prompts(2)

    def found(draw_threads: int) -> dict[str, PromptResult | PromptFailure]:
        engine = Engine(
            model=TinyModel(),
            reward=TinyReward(),
            extractor=TinyExtractor(),
            plan=plan,
            run_seed=3,
            settings=EngineSettings(micro_batch_rows=5, draw_threads=draw_threads),
        )
        settings = CoordinatorSettings(keep="all")
        outcomes = run_local(iter(prompts), plan=plan, engines=[engine], run_seed=3, settings=settings)
        return {outcome.prompt.key: outcome for outcome in outcomes}

    assert content(found(2)) == content(found(0))
    assert len(content(found(2))) == 2


def test_a_loop_of_ones_own_gets_every_file() -> None:
    engine = Engine(
        model=TinyModel(),
        reward=TinyReward(),
        extractor=None,
        plan=raw_plan(3),
        run_seed=3,
        settings=EngineSettings(keep="best"),
    )
    outcome = search_prompt(make_prompts(1)[0], plan=raw_plan(3), engine=engine, run_seed=3)
    assert isinstance(outcome, PromptResult)
    assert all(image.image.payload is not None for image in outcome.images)
