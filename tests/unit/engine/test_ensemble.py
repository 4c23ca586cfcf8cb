"""Ensembles through the whole search: one result, however a population is spread, and honest counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support.plans import raw_plan, tts_var_plan
from tests.support.prompts import make_prompts
from tests.support.tiny_model import TINY_TEXT_LENGTH, TinyExtractor, TinyModel, TinyReward
from ttsvar_ray.coordination.settings import CoordinatorSettings, Spread
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.rewards.protocol import RewardEnsemble, RewardText
from ttsvar_ray.search.plan import FinalChoice, Plan
from ttsvar_ray.types import WORST_REWARD, Float32Array, Prompt, RewardCombination, UInt8Array


class RedReward(TinyReward):
    """Likes red; reads texts of any length. A blind one sees no dark corners."""

    def __init__(self, *, blind: bool = False) -> None:
        super().__init__()
        self.name = "red"
        self._blind = blind

    def encode_text(self, texts: list[str]) -> list[RewardText]:  # type: ignore[override]
        return [RewardText(content=text) for text in texts]

    def score_prepared(self, pixels: UInt8Array, texts: list[RewardText]) -> Float32Array:  # type: ignore[override]
        red = pixels[..., 0].mean(axis=(1, 2)).astype(np.float32)
        if self._blind:
            red[pixels[:, 0, 0, 0] < 128] = np.nan
        return red


def search(
    prompts: list[Prompt],
    plan: Plan,
    *,
    engines: int = 1,
    rows: int = 16,
    spread: Spread = "auto",
    blind: bool = False,
    nonfinite: str = "error",
) -> dict[str, PromptResult | PromptFailure]:
    workers = [
        Engine(
            model=TinyModel(),
            reward=RewardEnsemble([TinyReward(), RedReward(blind=blind)], name="both"),
            extractor=TinyExtractor(),
            plan=plan,
            run_seed=3,
            settings=EngineSettings(micro_batch_rows=rows, nonfinite=nonfinite),
        )
        for _ in range(engines)
    ]
    settings = CoordinatorSettings(spread=spread, keep="all")
    outcomes = run_local(iter(prompts), plan=plan, engines=workers, run_seed=3, settings=settings)
    return {outcome.prompt.key: outcome for outcome in outcomes}


def combined(plan: Plan, combination: RewardCombination) -> Plan:
    return replace(plan, reward_members=2, combination=combination)


@pytest.mark.parametrize("combination", RewardCombination)
@pytest.mark.parametrize(("engines", "rows", "spread"), [(1, 3, "auto"), (3, 5, 3), (4, 16, 4)])
def test_spread_and_packing_do_not_change_an_ensembles_choices(
    combination: RewardCombination, engines: int, rows: int, spread: Spread
) -> None:
    plan = combined(tts_var_plan(2), combination)
    prompts = make_prompts(5)
    prompts[2] = replace(prompts[2], text="x" * (TINY_TEXT_LENGTH + 1))

    def content(outcomes: dict[str, PromptResult | PromptFailure]) -> dict[str, object]:
        found = {}
        for key, outcome in outcomes.items():
            assert isinstance(outcome, PromptResult)
            trace = [(r.ancestor_index, r.rewards, r.numbers.get("log_weights")) for r in outcome.trace]
            cuts = [outcome.counters.get(name) for name in ("reward_texts_truncated", "text_truncated")]
            found[key] = (outcome.images, trace, *cuts)
        return found

    expected = content(search(prompts, plan, rows=64))
    assert content(search(prompts, plan, engines=engines, rows=rows, spread=spread)) == expected
    cut = {key: cuts for key, (_, _, *cuts) in expected.items() if any(cuts)}  # type: ignore[misc]
    assert cut == {prompts[2].key: [1, 1]}, "one member of two, and the model, however often they were asked"


def test_the_best_image_is_the_ensembles_and_its_members_are_kept() -> None:
    (outcome,) = search(make_prompts(1), combined(raw_plan(4), RewardCombination.Z_SCORE)).values()
    assert isinstance(outcome, PromptResult)
    rewards = [image.reward for image in outcome.images]
    assert rewards == sorted(rewards, reverse=True)
    members = np.array([image.member_rewards for image in outcome.images])
    z_scores = (members - members.mean(axis=0)) / members.std(axis=0)
    np.testing.assert_allclose(z_scores.mean(axis=1), rewards, atol=1e-6)


def test_the_policy_for_what_is_no_number_holds_for_each_member() -> None:
    plan = combined(raw_plan(8), RewardCombination.SOFTMAX)
    (failed,) = search(make_prompts(1), plan, blind=True).values()
    assert isinstance(failed, PromptFailure) and "reward 'red' of prompt" in failed.errors[-1]
    (outcome,) = search(make_prompts(1), plan, blind=True, nonfinite="worst").values()
    assert isinstance(outcome, PromptResult)
    reds = [image.member_rewards[1] for image in outcome.images]
    unjudged = [red == np.float32(WORST_REWARD) for red in reds]
    assert 0 < sum(unjudged) < 8
    assert outcome.counters["rewards_not_finite"] == sum(unjudged)
    assert all(image.member_rewards[0] > WORST_REWARD for image in outcome.images)
    assert sum(image.reward for image in outcome.images) == pytest.approx(1.0)


def test_an_ensemble_and_a_plan_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="the plan expects 1 members, got 2"):
        search(make_prompts(1), raw_plan(2))


def test_one_reward_steers_and_another_chooses() -> None:
    plan = replace(tts_var_plan(2), reward_members=2, final=FinalChoice(member=1))
    found = search(make_prompts(4), plan)
    expected = search(make_prompts(4), plan, engines=3, rows=4, spread=2)
    for key, outcome in found.items():
        assert isinstance(outcome, PromptResult)
        assert outcome.images == expected[key].images  # type: ignore[union-attr]
        steering = [image.member_rewards[0] for image in outcome.images]
        chosen_by = [image.member_rewards[1] for image in outcome.images]
        assert [image.reward for image in outcome.images] == steering
        assert chosen_by == sorted(chosen_by, reverse=True)
    alone = search_of_one(make_prompts(4), tts_var_plan(2))
    for key, outcome in alone.items():
        both = found[key]
        assert isinstance(outcome, PromptResult) and isinstance(both, PromptResult)
        assert {image.lineage for image in outcome.images} == {image.lineage for image in both.images}


def search_of_one(prompts: list[Prompt], plan: Plan) -> dict[str, PromptResult | PromptFailure]:
    """Search with the first of the two rewards alone."""
    engine = Engine(
        model=TinyModel(),
        reward=TinyReward(),
        extractor=TinyExtractor(),
        plan=plan,
        run_seed=3,
        settings=EngineSettings(),
    )
    settings = CoordinatorSettings(keep="all")
    outcomes = run_local(iter(prompts), plan=plan, engines=[engine], run_seed=3, settings=settings)
    return {outcome.prompt.key: outcome for outcome in outcomes}
