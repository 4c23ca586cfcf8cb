"""Population: lineages, histories and bits through selections, without workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.dummy_engine import DummyEngine, reference_outcome
from tests.support.prompts import make_prompts
from ttsvar_ray.coordination.messages import SegmentReport
from ttsvar_ray.coordination.population import Population, Restarted
from ttsvar_ray.errors import RewardError
from ttsvar_ray.results import PromptResult, SelectionRecord
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.rounds import Stop, StopReason
from ttsvar_ray.search.strategy import compile_plan
from ttsvar_ray.types import RewardCombination

SEED = 3
PROMPT = make_prompts(1)[0]
PLAN = compile_plan(
    scale_schedule=((1, 1), (2, 2), (3, 3), (4, 4)),
    strategy="tts-var",
    batch_schedule=[6, 4, 2, 2],
    cluster_scales=[1],
    resample_scales=[2],
    cluster_restarts=2,
)


def start(plan: Plan = PLAN) -> Population:
    return Population(prompt=PROMPT, plan=plan, run_seed=SEED)


def report(population: Population, slots: Iterable[int], plan: Plan = PLAN) -> SegmentReport:
    """Run some slots on an engine that holds nothing."""
    engine = DummyEngine(plan=plan, run_seed=SEED)
    [result] = engine.run_segment([population.task(tuple(slots), attempt=1, held_parents=())])
    assert isinstance(result, SegmentReport)
    return result


def run_segment(population: Population, plan: Plan = PLAN) -> None:
    assert population.accept(report(population, range(population.segment.population), plan)) is None


def select(population: Population) -> SelectionRecord:
    step = population.advance()
    assert isinstance(step, SelectionRecord)
    return step


def finish(population: Population, plan: Plan = PLAN) -> StopReason:
    """Run it to its end."""
    while True:
        run_segment(population, plan)
        step = population.advance()
        if isinstance(step, Stop):
            return step.reason
        if isinstance(step, SelectionRecord):
            population.trace.append(step)


def seen(result: PromptResult) -> list[tuple[object, ...]]:
    return [
        (i.image.payload, i.reward, i.reward_history, i.lineage, i.bits, i.round_index) for i in result.images
    ]


def test_reports_in_any_order_give_the_sequential_result() -> None:
    population = start()
    while True:
        size = population.segment.population
        half = size // 2
        assert population.accept(report(population, range(half, size))) is None
        assert population.unreported == tuple(range(half))
        assert population.accept(report(population, range(half))) is None
        assert population.is_complete
        step = population.advance()
        if isinstance(step, Stop):
            break
        assert isinstance(step, SelectionRecord)
        population.trace.append(step)

    result = population.result(step.reason, keep="all", attempts=2)

    assert seen(result) == reference_outcome(PLAN, SEED, PROMPT.key).images
    assert [image.rank for image in result.images] == [0, 1]
    assert all(len(image.lineage) == len(PLAN.segments) for image in result.images)
    assert all(len(image.reward_history) == len(PLAN.scored_scales) for image in result.images)
    assert result.attempts == 2
    assert result.seconds == 6.0
    assert result.counters == {"shards": 6}


def test_keep_best_is_the_first_of_all() -> None:
    population = start()
    reason = finish(population)

    [best] = population.result(reason, keep="best", attempts=1).images
    everything = population.result(reason, keep="all", attempts=1).images

    assert best == everything[0]
    assert best.reward == max(image.reward for image in everything)


def test_records_say_what_each_kind_of_selection_saw() -> None:
    population = start()
    run_segment(population)
    clustering = select(population)
    run_segment(population)
    resampling = select(population)

    assert (clustering.kind, clustering.scale_index) == ("cluster", 1)
    assert len(clustering.ancestor_index) == 4
    assert len(clustering.numbers["labels"]) == 6
    assert clustering.rewards == ()
    assert set(clustering.numbers) == {"labels"}
    assert (resampling.kind, resampling.scale_index) == ("resample", 2)
    assert len(resampling.rewards) == len(resampling.numbers["log_weights"]) == 4
    assert np.allclose(resampling.numbers["log_weights"], np.array(resampling.rewards) * 10.0)
    assert 1.0 <= resampling.numbers["ess"][0] <= 4.0
    assert set(resampling.numbers) == {"log_weights", "ess"}


def test_a_task_carries_each_missing_parent_once() -> None:
    population = start()
    run_segment(population)
    population.advance()
    run_segment(population)
    population.advance()
    parents = population.parent_slots

    everywhere = population.task((0, 1), attempt=1, held_parents=set(parents))
    nowhere = population.task((0, 1), attempt=1, held_parents=())

    assert everywhere.parent_bits == {}
    assert nowhere.parent_slots == parents
    assert set(nowhere.parent_bits) == set(parents)
    assert all(len(bits) == 3 for bits in nowhere.parent_bits.values()), "bits of all finished scales"


def test_features_of_two_shapes_are_not_one_population() -> None:
    population = start()
    assert population.accept(report(population, range(3))) is None
    rest = report(population, range(3, 6))
    assert rest.features is not None
    complaint = population.accept(replace(rest, features=rest.features[:, :1]))
    assert (
        complaint is not None and "features of one shape for the whole population, got [(1,), (" in complaint
    )
    assert population.accept(rest) is None
    population.advance()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rewards": np.zeros((6, 2), np.float32)}, "expected rewards of shape (6, 0), got (6, 2)"),
        ({"bits": ((b"", b""),) * 5}, "expected bits of 6 slots and 2 scales"),
        ({"bits": ((b"",),) * 6}, "expected bits of 6 slots and 2 scales"),
        ({"features": None}, "expected features of 6 slots, got None"),
    ],
)
def test_a_report_that_does_not_fit_is_not_taken_in(change: dict[str, object], complaint: str) -> None:
    population = start()
    found = population.accept(replace(report(population, range(6)), **change))  # type: ignore[arg-type]
    assert found is not None
    assert complaint in found
    assert len(population.unreported) == 6


def test_a_reward_that_is_no_number_fails_the_selection() -> None:
    population = start()
    run_segment(population)
    population.advance()
    good = report(population, range(4))
    population.accept(replace(good, rewards=np.full_like(good.rewards, np.nan)))
    with pytest.raises(RewardError):
        population.advance()


def test_an_ensemble_is_combined_over_the_whole_population_however_it_is_sharded() -> None:
    plan = replace(PLAN, reward_members=2, combination=RewardCombination.SOFTMAX)

    def sharded_over(shards: int) -> tuple[list[SelectionRecord], PromptResult]:
        population = Population(prompt=PROMPT, plan=plan, run_seed=SEED)
        records = []
        while True:
            size = population.segment.population
            for part in reversed(np.array_split(np.arange(size), min(shards, size))):
                single = report(population, part.tolist())
                scores = np.stack([single.rewards, -3.0 * single.rewards], axis=-1)
                both = replace(single, rewards=scores.reshape(len(part), -1))
                assert population.accept(both) is None
            step = population.advance()
            if isinstance(step, Stop):
                return records, population.result(step.reason, keep="all", attempts=1)
            assert isinstance(step, SelectionRecord)
            records.append(step)

    records, result = sharded_over(1)
    sharded_records, sharded = sharded_over(3)
    assert [(r.ancestor_index, r.rewards) for r in sharded_records] == [
        (r.ancestor_index, r.rewards) for r in records
    ]
    assert sharded.images == result.images
    assert sum(records[-1].rewards) == pytest.approx(1.0)
    first, second = result.images
    assert first.reward + second.reward == pytest.approx(1.0)
    shares = [np.exp(image.member_rewards) for image in result.images]
    expected = np.mean([shares[0] / (shares[0] + shares[1]), shares[1] / (shares[0] + shares[1])], axis=1)
    assert (first.reward, second.reward) == pytest.approx(tuple(expected))


def test_plans_without_selections_have_one_segment_and_no_parents() -> None:
    plan: Plan = compile_plan(scale_schedule=((1, 1), (2, 2)), strategy="best-of-n", n=3)
    population = Population(prompt=PROMPT, plan=plan, run_seed=SEED)
    assert population.segment.is_last
    assert population.parent_slots == ()
    assert population.task((1,), attempt=1, held_parents=()).parent_slots == ()


def rounds_plan(**settings: Any) -> Plan:
    return compile_plan(
        scale_schedule=((1, 1), (2, 2), (3, 3), (4, 4)),
        strategy="adaptive",
        max_rounds=4,
        **settings,
    )


def test_a_prompt_stops_at_the_first_image_that_is_good_enough() -> None:
    plan = rounds_plan(stop_at=0.0)
    population = start(plan)

    assert finish(population, plan) is StopReason.SATISFIED
    result = population.result(StopReason.SATISFIED, keep="all", attempts=1)
    assert (result.rounds, result.trajectories, result.stopped) == (1, (1,), "satisfied")


def test_rounds_that_satisfy_nobody_are_all_run_and_ranked_together() -> None:
    plan = rounds_plan(stop_at=2.0, growth=[1, 2])
    population = start(plan)

    assert finish(population, plan) is StopReason.ROUNDS
    result = population.result(StopReason.ROUNDS, keep="all", attempts=1)
    assert seen(result) == reference_outcome(plan, SEED, PROMPT.key).images
    assert (result.rounds, result.trajectories) == (4, (1 + 2 + 2 + 2,))
    assert sorted(image.round_index for image in result.images) == [0, 1, 1, 2, 2, 3, 3]
    assert len({image.image.payload for image in result.images}) == 7, "rounds draw from streams of their own"


def test_the_best_of_nothing_but_abandoned_rounds_is_finished_from_its_bits() -> None:
    plan = rounds_plan(stop_at=0.0, reject_below={1: 2.0}, n=2)
    population = start(plan)
    best: list[tuple[float, int]] = []
    for round_index in range(4):
        run_segment(population, plan)
        assert isinstance(population.advance(), Restarted)
        best.append((max(population.trace[-1].rewards), -round_index))
    assert [record.ancestor_index for record in population.trace] == [()] * 4
    assert "abandoned" in population.trace[0].reason

    task = population.task((0,), attempt=5, held_parents=())
    assert task.round_index == -max(best)[1]
    assert len(task.parent_bits[0]) == 2, "the bits of the scales before"
    assert finish(population, plan) is StopReason.ABANDONED
    result = population.result(StopReason.ABANDONED, keep="all", attempts=1)
    assert seen(result) == reference_outcome(plan, SEED, PROMPT.key).images
    assert (result.rounds, result.trajectories) == (4, (8, 1))
