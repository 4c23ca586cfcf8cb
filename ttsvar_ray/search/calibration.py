"""Thresholds of an adaptive search, chosen on complete trajectories: nothing is drawn to try them.

Comes in: a pool, rewards of trajectories at some scales and at the last one, and what a judge says of their
images where there is one. Goes out: what a policy would have cost and found, and the best within a budget.

A round of one trajectory depends on no other round, so that the trajectories of a pool, in any order, are
rounds: the replay is exact, up to the pool's size. Plans that select are replayed by `search.replay`.

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
from ttsvar_ray.types import Float64Array, Int64Array

ORDERS = 8
"""Orders of each prompt's trajectories that a policy is replayed in."""

REJECTED_SHARES = (*(share / 100 for share in range(5, 100, 5)), 0.98)
"""Of all trajectories, how many a threshold that is tried would abandon: nearly all, where one cut would."""

PAIRED_SHARES = (0.1, 0.25, 0.45, 0.65, 0.8)
"""The same, where rounds may be abandoned at two scales."""

SATISFYING_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Of all final images, how many a threshold that is tried would not be content with."""

ImageCosts = Callable[[tuple[int, ...]], tuple[float, ...]]
"""What a plan costs that may be abandoned at these scales, as `costs.plan_cost.image_costs` says it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """Complete trajectories.

    Attributes:
        scales: that were scored, ascending; the model's last one is the last.
        rewards: float64 [prompts, trajectories, scales].
        quality: float64 [prompts, trajectories] that is to be high in the images that are kept: a judge's
            verdict, or the final reward where there is none.
        texts: int64 [prompts], equal where prompts say the same: these are hard together.
    """

    scales: tuple[int, ...]
    rewards: Float64Array
    quality: Float64Array
    texts: Int64Array

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Played:
    """A policy on one order of the trajectories; arrays are [prompts, rounds].

    Attributes:
        final, quality: of each trajectory's image.
        ended: the segment that each would end with; the last where it is finished.
        reached: its reward there.
        ran: whether its round is begun at all.
        enough: whether its image is good enough.
    """

    final: Float64Array
    quality: Float64Array
    ended: np.ndarray
    reached: Float64Array
    ran: np.ndarray
    enough: np.ndarray


def _plays(pool: Pool, rounds: Rounds) -> Iterator[_Played]:
    at = [pool.scales.index(scale) for scale, _ in rounds.reject_below]
    for order in _orders(pool):
        seen = np.take_along_axis(pool.rewards, order[:, :, None], axis=1)[:, : rounds.most]
        final, quality = seen[:, :, -1], np.take_along_axis(pool.quality, order, axis=1)[:, : rounds.most]
        ended = np.full(final.shape, len(at))
        for segment in reversed(range(len(at))):
            ended[seen[:, :, at[segment]] < rounds.reject_below[segment][1]] = segment
        enough = (ended == len(at)) & (final >= (np.inf if rounds.stop_at is None else rounds.stop_at))
        yield _Played(
            final=final,
            quality=quality,
            ended=ended,
            reached=np.take_along_axis(seen[:, :, [*at, -1]], ended[:, :, None], axis=2)[:, :, 0],
            ran=np.cumsum(enough, axis=1) - enough == 0,
            enough=enough,
        )


def replay(pool: Pool, rounds: Rounds, image_costs: ImageCosts) -> Outcomes:
    """Return what a policy of rounds of one trajectory would have come to on a pool of at least as many."""
    assert set(rounds.growth) == {1}
    assert pool.rewards.shape[1] >= rounds.most
    text, *segments = image_costs(tuple(scale for scale, _ in rounds.reject_below))
    paid = np.cumsum(segments)
    costs, qualities, rewards = [], [], []
    for one in _plays(pool, rounds):
        # The furthest, there the highest reward, of equal ones the earliest: kept, or finished after all.
        earlier = np.broadcast_to(-np.arange(one.final.shape[1]), one.final.shape)
        best = np.lexsort((earlier, one.reached, np.where(one.ran, one.ended, -1)))[:, -1:]
        left = paid[-1] - np.take_along_axis(paid[one.ended], best, axis=1)[:, 0]
        costs.append(text + np.where(one.ran, paid[one.ended], 0.0).sum(axis=1) + left)
        qualities.append(np.take_along_axis(one.quality, best, axis=1)[:, 0])
        rewards.append(np.take_along_axis(one.final, best, axis=1)[:, 0])
    return Outcomes(
        cost=np.mean(costs, axis=0), quality=np.mean(qualities, axis=0), reward=np.mean(rewards, axis=0)
    )


def shares(pool: Pool, rounds: Rounds) -> tuple[dict[int, float], float]:
    """Return how rounds end under a policy.

    Returns:
        of the rounds that come to each scale where they may be abandoned, the share that is; and of those
        that are finished, the share that is good enough.
    """
    plays = list(_plays(pool, rounds))
    ran = np.concatenate([one.ended[one.ran] for one in plays])
    enough = np.concatenate([one.enough[one.ran] for one in plays])
    abandoned = {
        scale: float((ran == segment).sum() / max((ran >= segment).sum(), 1))
        for segment, (scale, _) in enumerate(rounds.reject_below)
    }
    finished = ran == len(rounds.reject_below)
    return abandoned, float(enough[finished].mean()) if finished.any() else 0.0


def calibrate(
    pool: Pool, *, budgets: Sequence[float], max_rounds: int, image_costs: ImageCosts
) -> dict[float, Calibrated]:
    """Choose for each budget the thresholds of the highest quality that cost at most so much.

    Args:
        budgets: images a prompt, on average.

    Returns:
        by budget; those are missing where no policy that was tried is that cheap, on all prompts or on half
        of them.
    """
    tried = [(rounds, replay(pool, rounds, image_costs)) for rounds in _candidates(pool, max_rounds)]
    halves = _halves(pool.texts)
    found = {budget: _chosen(tried, halves, budget) for budget in budgets}
    return {budget: one for budget, one in found.items() if one is not None}


def _halves(texts: Int64Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the prompts in two parts that share no text, unless all say the same."""
    _, own = np.unique(texts, return_inverse=True)
    own = own if own.any() else np.arange(len(own))
    # At random: where kinds of prompts take turns, every other one would be of other kinds.
    place = np.argsort(stream(0, "halves", -1, -1, "calibration").permutation(own.max() + 1))[own]
    first = int((place < (own.max() + 1) // 2).sum())
    prompts = np.argsort(place, kind="stable")
    return prompts[:first], prompts[first:]


def _chosen(
    tried: Sequence[tuple[Rounds, Outcomes]], halves: tuple[np.ndarray, np.ndarray], budget: float
) -> Calibrated | None:
    everything = _best(tried, np.concatenate(halves), budget)
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Consistency:
    """How well the reward of an unfinished image foretells, float64 [prompts] each.

    Attributes:
        scale: where it was scored.
        correlation: rank correlation with the final reward, within the prompt; NaN where all are equal.
        same_best: whether the best there is the best at the end.
        picked: quality of the best there.
    """

    scale: int
    correlation: Float64Array
    same_best: Float64Array
    picked: Float64Array


def consistency(pool: Pool) -> list[_Consistency]:
    """Return how each scale that was scored agrees with the end, the last scale included."""
    from scipy.stats import rankdata  # half a second that no search needs

    final = rankdata(pool.final, axis=1)
    best = pool.final.argmax(axis=1)
    found = []
    for place, scale in enumerate(pool.scales):
        rewards = pool.rewards[:, :, place]
        first = rewards.argmax(axis=1)
        found.append(
            _Consistency(
                scale=scale,
                correlation=_correlations(rankdata(rewards, axis=1), final),
                same_best=(first == best).astype(np.float64),
                picked=np.take_along_axis(pool.quality, first[:, None], axis=1)[:, 0],
            )
        )
    return found


def _correlations(one: Float64Array, two: Float64Array) -> Float64Array:
    one, two = one - one.mean(axis=1, keepdims=True), two - two.mean(axis=1, keepdims=True)
    spread = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((one * two).sum(axis=1) / spread)


def _candidates(pool: Pool, max_rounds: int) -> Iterator[Rounds]:
    """Yield every policy that is tried: abandoned at no scale, at one, or at two with fewer thresholds."""
    stops = np.quantile(pool.final, SATISFYING_SHARES)
    single = [_thresholds(pool, place, REJECTED_SHARES) for place in range(len(pool.scales) - 1)]
    few = [_thresholds(pool, place, PAIRED_SHARES) for place in range(len(pool.scales) - 1)]
    rejections: list[tuple[tuple[int, float], ...]] = [()]
    rejections += [(one,) for scale in single for one in scale]
    rejections += [
        pair for first, second in itertools.combinations(few, 2) for pair in itertools.product(first, second)
    ]
    for reject_below, stop_at in itertools.product(rejections, stops):
        yield Rounds(growth=(1,) * max_rounds, reject_below=reject_below, stop_at=float(stop_at))


def _thresholds(pool: Pool, place: int, rejected: Sequence[float]) -> list[tuple[int, float]]:
    least = np.quantile(pool.rewards[:, :, place], rejected)
    return [(pool.scales[place], float(one)) for one in least]


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
