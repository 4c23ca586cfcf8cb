"""Policies on a pool: a replay says what the search itself does; choices are measured elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ttsvar_ray.search.calibration import Calibrated, Pool, calibrate, replay
from ttsvar_ray.search.loop import Seen, search
from ttsvar_ray.search.plan import Rounds, Segment
from ttsvar_ray.search.strategy import compile_plan
from ttsvar_ray.types import Int64Array

SCALES = (2, 4, 6)
GRID = ((1, 1),) * 7


def make_pool(prompts: int, trajectories: int, seed: int = 0) -> Pool:
    """Return trajectories whose early rewards are noisy signs of the last one."""
    rng = np.random.default_rng(seed)
    final = rng.normal(size=(prompts, trajectories)) + rng.normal(size=(prompts, 1))
    noise = rng.normal(size=(prompts, trajectories, 2)) * [1.0, 0.5]
    rewards = np.concatenate([final[:, :, None] + noise, final[:, :, None]], axis=2)
    quality = (final > 0.5).astype(float)
    return Pool(scales=SCALES, rewards=rewards, quality=quality, texts=np.arange(prompts))


def image_costs(rejecting: tuple[int, ...]) -> tuple[float, ...]:
    """Every scale costs a seventh; nothing else costs anything."""
    ends = [*(scale + 1 for scale in rejecting), 7]
    return (0.0, *np.diff([0, *ends]) / 7)


def searched(pool: Pool, rounds: Rounds) -> tuple[list[float], list[float]]:
    """Run the search itself, each round on the next trajectory of the pool; return costs and rewards."""
    plan = compile_plan(
        scale_schedule=GRID,
        strategy="adaptive",
        max_rounds=rounds.most,
        reject_below=dict(rounds.reject_below),
        stop_at=rounds.stop_at,
    )
    costs, rewards = [], []
    for own in pool.rewards:
        paid: list[float] = []

        def run_segment(
            segment: Segment, ancestor_index: Int64Array, round_index: int, own=own, paid=paid
        ) -> Seen:
            paid.append((segment.last_scale - segment.first_scale + 1) / 7)
            seen = [own[round_index, SCALES.index(scale)] for scale in segment.scored_scales]
            return Seen(scores=np.array(seen).reshape(1, -1, 1))

        found = search(plan, run_segment, run_seed=0, prompt_key="p")
        (place, slot), *_ = found.ranking
        costs.append(sum(paid))
        rewards.append(float(found.rounds[place].past.latest[slot]))
    return costs, rewards


@pytest.mark.parametrize(
    ("reject_below", "stop_at", "most"),
    [
        ((), 0.5, 6),
        (((2, 0.0),), 1.0, 6),
        (((2, -0.5), (4, 0.5)), 1.5, 4),
        (((4, 9.0),), 0.0, 5),
        ((), 9.0, 3),
    ],
)
def test_a_replay_is_what_the_search_does(
    reject_below: tuple[tuple[int, float], ...], stop_at: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttsvar_ray.search.calibration.ORDERS", 1)  # the pool's own order
    pool = make_pool(40, 6)
    rounds = Rounds(growth=(1,) * most, reject_below=reject_below, stop_at=stop_at)

    outcomes = replay(pool, rounds, image_costs)

    costs, rewards = searched(pool, rounds)
    assert outcomes.cost == pytest.approx(costs)
    assert outcomes.reward == pytest.approx(rewards)


def test_what_is_chosen_keeps_to_the_budget_and_beats_what_costs_as_much() -> None:
    pool = make_pool(200, 8)
    found = calibrate(pool, budgets=[1.5], max_rounds=8, image_costs=image_costs).get(1.5)

    assert found is not None
    assert found.chosen_on.cost.mean() <= 1.5
    assert found.held_out.cost.mean() == pytest.approx(1.5, abs=0.25)
    one = replay(pool, Rounds(), image_costs)
    gain = found.held_out.quality - one.quality
    assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain))
    assert found.held_out.quality.mean() <= found.chosen_on.quality.mean() + 0.02


def test_no_policy_is_cheaper_than_an_image() -> None:
    assert not calibrate(make_pool(40, 4), budgets=[0.9], max_rounds=4, image_costs=image_costs)


def test_halves_are_alike_where_kinds_of_prompts_take_turns() -> None:
    pool = make_pool(200, 8)
    easy = np.arange(200) % 2 == 0
    quality = np.where(easy[:, None], 1.0, pool.quality * 0.2)
    rewards = pool.rewards + np.where(easy, 3.0, 0.0)[:, None, None]
    turns = replace(pool, rewards=rewards, quality=quality)

    found = calibrate(turns, budgets=[1.5], max_rounds=8, image_costs=image_costs)[1.5]

    # Chosen on the easy prompts alone, nothing is abandoned; on the hard ones alone, all is.
    assert found.held_out.cost.mean() == pytest.approx(1.5, abs=0.25)


def test_a_large_budget_may_finish_the_best_of_many() -> None:
    """Where an early look tells all, the best policy abandons nearly everything."""
    rng = np.random.default_rng(0)
    final = rng.normal(size=(200, 16))
    rewards = np.repeat(final[:, :, None], 3, axis=2)
    pool = Pool(scales=SCALES, rewards=rewards, quality=final, texts=np.arange(200))

    found = calibrate(pool, budgets=[7.5], max_rounds=16, image_costs=image_costs)[7.5]

    assert found.held_out.quality.mean() > final.max(axis=1).mean() - 0.02
    assert any((pool.final < least).mean() > 0.8 for _, least in found.rounds.reject_below)


def test_what_a_text_taught_is_not_held_out() -> None:
    """Of eight copies of each prompt no half has some: what is learnt of one is known of the others."""
    rng = np.random.default_rng(3)
    own = make_pool(8, 8, seed=3)
    copies = Pool(
        scales=SCALES,
        rewards=np.repeat(own.rewards, 8, axis=0),
        quality=np.repeat(rng.random((8, 8)), 8, axis=0),
        texts=np.repeat(np.arange(8), 8),
    )

    def chosen(texts: Int64Array) -> Calibrated:
        pool = replace(copies, texts=texts)
        return calibrate(pool, budgets=[1.5], max_rounds=8, image_costs=image_costs)[1.5]

    told, untold, equal = (chosen(texts) for texts in (copies.texts, np.arange(64), np.zeros(64, int)))
    assert told.rounds == untold.rounds
    assert told.held_out.quality.mean() < untold.held_out.quality.mean() - 0.05
    assert (equal.held_out.quality == untold.held_out.quality).all(), "one text cannot be parted"
