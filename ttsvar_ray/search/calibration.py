"""Thresholds of an adaptive search, chosen on complete trajectories: nothing is drawn to try them.

Comes in: a pool, rewards of trajectories at some scales and at the last one, and what a judge says of their
images where there is one. Goes out: what a policy would have cost and found, and the best within a budget.

A round of one trajectory depends on no other round, so that the trajectories of a pool, in any order, are
rounds: the replay is exact, up to the pool's size. Rounds that select within themselves cannot be replayed:
the children of a selection were never drawn.

What is chosen as the best was lucky, too. So what is reported was measured on the half of the prompts that
the choice has not seen, once for each half; the choice itself is then made on all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ttsvar_ray.rng import stream
from ttsvar_ray.search.plan import Rounds
from ttsvar_ray.types import Float64Array

ORDERS = 8
"""Orders of each prompt's trajectories that a policy is replayed in."""

REJECTED_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
"""Of all trajectories, how many a threshold that is tried would abandon."""

SATISFYING_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Of all final images, how many a threshold that is tried would not be content with."""

RESAMPLES = 1000

ImageCosts = Callable[[tuple[int, ...]], tuple[float, ...]]
"""What a plan costs that may be abandoned at these scales, as `costs.image_costs` says it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """Complete trajectories.

    Attributes:
        scales: that were scored, ascending; the model's last one is the last.
        rewards: float64 [prompts, trajectories, scales].
        quality: float64 [prompts, trajectories] that is to be high in the images that are kept: a judge's
            verdict, or the final reward where there is none.
    """

    scales: tuple[int, ...]
    rewards: Float64Array
    quality: Float64Array

    @property
    def final(self) -> Float64Array:
        """Rewards of the final images."""
        return self.rewards[:, :, -1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """What a policy costs and finds, float64 [prompts]: the mean over `ORDERS` orders."""

    cost: Float64Array
    quality: Float64Array
    reward: Float64Array

    def of(self, prompts: np.ndarray) -> Outcomes:
        """Return those of some prompts."""
        return Outcomes(cost=self.cost[prompts], quality=self.quality[prompts], reward=self.reward[prompts])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibrated:
    """The best policy within a budget.

    Attributes:
        rounds: the policy, chosen on all prompts.
        chosen_on: what it comes to on the prompts that it was chosen on: too good by as much as it was lucky.
        held_out: what the policies come to that are chosen the same way on one half, on the other.
    """

    rounds: Rounds
    chosen_on: Outcomes
    held_out: Outcomes


def replay(pool: Pool, rounds: Rounds, image_costs: ImageCosts) -> Outcomes:
    """Return what a policy of rounds of one trajectory would have come to on a pool of at least as many."""
    assert set(rounds.growth) == {1}
    assert pool.rewards.shape[1] >= rounds.most
    rejecting = tuple(scale for scale, _ in rounds.reject_below)
    text, *segments = image_costs(rejecting)
    paid = np.cumsum(segments)
    at = [pool.scales.index(scale) for scale in rejecting]
    costs, qualities, rewards = [], [], []
    for order in _orders(pool):
        seen = np.take_along_axis(pool.rewards, order[:, :, None], axis=1)[:, : rounds.most]
        final, quality = seen[:, :, -1], np.take_along_axis(pool.quality, order, axis=1)[:, : rounds.most]
        # The segment that each trajectory would end with, and its reward there.
        ended = np.full(final.shape, len(at))
        for segment in reversed(range(len(at))):
            ended[seen[:, :, at[segment]] < rounds.reject_below[segment][1]] = segment
        is_finished = ended == len(at)
        reached = np.take_along_axis(seen[:, :, [*at, -1]], ended[:, :, None], axis=2)[:, :, 0]
        enough = is_finished & (final >= (np.inf if rounds.stop_at is None else rounds.stop_at))
        ran = np.cumsum(enough, axis=1) - enough == 0
        # The furthest, there the highest reward, of equal ones the earliest: kept, or finished after all.
        earlier = np.broadcast_to(-np.arange(final.shape[1]), final.shape)
        best = np.lexsort((earlier, reached, np.where(ran, ended, -1)))[:, -1:]
        left = paid[-1] - np.take_along_axis(paid[ended], best, axis=1)[:, 0]
        costs.append(text + np.where(ran, paid[ended], 0.0).sum(axis=1) + left)
        qualities.append(np.take_along_axis(quality, best, axis=1)[:, 0])
        rewards.append(np.take_along_axis(final, best, axis=1)[:, 0])
    return Outcomes(
        cost=np.mean(costs, axis=0), quality=np.mean(qualities, axis=0), reward=np.mean(rewards, axis=0)
    )


def calibrate(pool: Pool, *, budget: float, max_rounds: int, image_costs: ImageCosts) -> Calibrated | None:
    """Choose the thresholds of the highest quality that cost at most `budget` images a prompt on average.

    Returns:
        None where no policy that was tried is that cheap, on all prompts or on half of them.
    """
    tried = [(rounds, replay(pool, rounds, image_costs)) for rounds in _candidates(pool, max_rounds)]
    prompts = np.arange(len(pool.rewards))
    halves = [prompts[0::2], prompts[1::2]]
    everything = _best(tried, prompts, budget)
    chosen = [_best(tried, half, budget) for half in halves]
    if everything is None or None in chosen:
        return None
    order = np.argsort(np.concatenate(halves[::-1]))
    parts = [one[1].of(half) for one, half in zip(chosen, halves[::-1], strict=True) if one is not None]
    held_out = Outcomes(
        cost=np.concatenate([part.cost for part in parts])[order],
        quality=np.concatenate([part.quality for part in parts])[order],
        reward=np.concatenate([part.reward for part in parts])[order],
    )
    return Calibrated(rounds=everything[0], chosen_on=everything[1], held_out=held_out)


def standard_error(values: Float64Array) -> float:
    """Return the standard error of a mean over prompts, by the bootstrap: prompts drawn with repeats."""
    rng = stream(0, "bootstrap", -1, -1, "calibration")
    drawn = rng.integers(0, len(values), size=(RESAMPLES, len(values)))
    return float(values[drawn].mean(axis=1).std())


def _candidates(pool: Pool, max_rounds: int) -> Iterator[Rounds]:
    """Yield every policy that is tried: at most one scale to be abandoned at."""
    stops = np.quantile(pool.final, SATISFYING_SHARES)
    rejections: list[tuple[tuple[int, float], ...]] = [()]
    for place, scale in enumerate(pool.scales[:-1]):
        thresholds = np.quantile(pool.rewards[:, :, place], REJECTED_SHARES)
        rejections += [((scale, float(least)),) for least in thresholds]
    for reject_below, stop_at in itertools.product(rejections, stops):
        yield Rounds(growth=(1,) * max_rounds, reject_below=reject_below, stop_at=float(stop_at))


def _best(
    tried: Sequence[tuple[Rounds, Outcomes]], prompts: np.ndarray, budget: float
) -> tuple[Rounds, Outcomes] | None:
    """Return what has the highest quality on some prompts within the budget; of equal ones the cheapest."""
    within = [one for one in tried if one[1].cost[prompts].mean() <= budget]
    if not within:
        return None
    return max(within, key=lambda one: (one[1].quality[prompts].mean(), -one[1].cost[prompts].mean()))


def _orders(pool: Pool) -> Iterator[np.ndarray]:
    """Yield int [prompts, trajectories] orders, the same for every policy."""
    shape = pool.final.shape
    rng = stream(0, "orders", -1, -1, "calibration")
    yield np.tile(np.arange(shape[1]), (shape[0], 1))
    for _ in range(ORDERS - 1):
        yield np.argsort(rng.random(shape), axis=1)
