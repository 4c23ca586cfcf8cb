"""The rows of the table of docs/results.md: what a search costs and how often it is right, by prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.shapes_pieces import POOL_SIZE, Method, PoolPrompt, job
from ttsvar_ray.costs.plan_cost import image_costs, plan_cost
from ttsvar_ray.evaluate.comparison import Interval, interval
from ttsvar_ray.evaluate.comparison import markdown as as_markdown
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.resolved import ResolvedJob, resolve
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.replay import replay_plan, trajectories_needed

ORDERS = 8
"""Orders of a prompt's trajectories that a plan is replayed in."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """A method on the prompts that it has finished.

    Attributes:
        name, kind: of the method, and "run", "pool" or "replayed".
        rows: int [prompts].
        accuracy, cost, reward: float64 [prompts]; cost in images.
        tokens: through the transformer, mean, over those of one image.
        seconds: CPU seconds a prompt; NaN where they were not measured.
        approximate: share of replays in which a trajectory was kept twice.
    """

    name: str
    kind: str
    rows: np.ndarray
    accuracy: np.ndarray
    cost: np.ndarray
    reward: np.ndarray
    tokens: float
    seconds: float = math.nan
    approximate: float = 0.0

    def on(self, rows: np.ndarray) -> np.ndarray:
        """Return the accuracy on some prompts, all of them its own."""
        return np.asarray(self.accuracy[np.searchsorted(self.rows, rows)])


def prompt_flops(resolved: ResolvedJob) -> float:
    """Return the FLOPs of one prompt, everything counted, in images."""
    text, *each = costs_by_segment(resolved)
    counts = [segment.population for segment in resolved.plan.segments]
    return float(text + np.dot(counts, each))


def flops_of(method: Method, model: str) -> float:
    """Return the FLOPs of one prompt of a plan without rounds, everything counted."""
    resolved = resolve(job(method, model, 0))
    networks = job_networks(resolved.config, resolved.description, resolved.plan, on_gpu=False)
    return plan_cost(resolved.plan, networks, selector_decode="full").flops


def costs_by_segment(resolved: ResolvedJob) -> tuple[float, ...]:
    """Return what a prompt costs in images: its text, then a trajectory of each segment of its plan."""
    networks = job_networks(resolved.config, resolved.description, resolved.plan, on_gpu=False)
    return image_costs(resolved.plan, networks, selector_decode="full")


def tokens_by_segment(plan: Plan) -> np.ndarray:
    """Return the tokens of one trajectory in each segment, over those of an image."""
    tokens = np.array([height * width for height, width in plan.scale_schedule], dtype=np.float64)
    sums = [tokens[one.first_scale : one.last_scale + 1].sum() for one in plan.segments]
    return np.array(sums) / tokens.sum()


def token_forwards(plan: Plan) -> float:
    """Return the tokens that one prompt runs through the transformer, over those of one image."""
    return float(tokens_by_segment(plan) @ [segment.population for segment in plan.segments])


def best_of(correct: np.ndarray, rewards: np.ndarray, size: int) -> tuple[float, float]:
    """Return (accuracy, reward) of best-of-`size`, the mean over all subsets of a pool.

    The image of rank i, from 0, is the best of C(pool - 1 - i, size - 1) of the C(pool, size) subsets.
    """
    pool = len(rewards)
    order = np.argsort(-rewards, kind="stable")
    shares = np.array([math.comb(pool - 1 - rank, size - 1) for rank in range(pool)], dtype=np.float64)
    shares /= math.comb(pool, size)
    return float(shares @ correct[order]), float(shares @ rewards[order])


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfCurve:
    """Best-of-k of one pool.

    Attributes:
        flops: float64 [sizes], of k = 1 and up, over those of one image.
        accuracy: float64 [sizes, prompts].
        reward: float64 [sizes, prompts].
    """

    flops: np.ndarray
    accuracy: np.ndarray
    reward: np.ndarray

    def at(self, flops: float) -> np.ndarray | None:
        """Return each prompt's accuracy at a cost, linear between two k; None above the pool's."""
        if not self.flops[0] <= flops <= self.flops[-1]:
            return None
        upper = int(np.searchsorted(self.flops, flops))
        if self.flops[upper] == flops:
            return np.asarray(self.accuracy[upper])
        share = (flops - self.flops[upper - 1]) / (self.flops[upper] - self.flops[upper - 1])
        return np.asarray((1 - share) * self.accuracy[upper - 1] + share * self.accuracy[upper])


def best_of_curve(model: str, pool: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> BestOfCurve:
    """Return best-of-k of a pool, in the order of its rows.

    Args:
        pool: (correct, rewards), each float64 [images], by row.
    """
    sizes = range(1, len(next(iter(pool.values()))[0]) + 1)
    flops = [
        prompt_flops(resolve(job(Method(name="", strategy={"name": "best-of-n", "n": n}), model, 0)))
        for n in sizes
    ]
    scores = np.array(
        [[best_of(correct, rewards, size) for size in sizes] for correct, rewards in pool.values()]
    ).transpose(1, 0, 2)
    return BestOfCurve(flops=np.array(flops), accuracy=scores[:, :, 0], reward=scores[:, :, 1])


def run_row(method: Method, model: str, finished: Mapping[int, Any]) -> Row:
    """Return the row of a search that ran."""
    resolved = resolve(job(method, model, 0))
    # Images of the model's own guidance: one that is guided in part is cheaper itself.
    raw = [
        flops_of(Method(name="", strategy={"name": "raw"}, sampling=one), model)
        for one in (method.sampling, None)
    ]
    text, *each = (cost * raw[0] / raw[1] for cost in costs_by_segment(resolved))
    planned = [segment.population for segment in resolved.plan.segments]
    counts = np.array([one.get("trajectories", planned) for one in finished.values()], dtype=np.float64)
    return Row(
        name=method.name,
        kind="run",
        rows=np.array(list(finished)),
        accuracy=np.array([float(one["correct"][0]) for one in finished.values()]),
        reward=np.array([one["rewards"][0] for one in finished.values()]),
        cost=text + counts @ np.array(each),
        tokens=float((counts @ tokens_by_segment(resolved.plan)).mean()),
        seconds=float(np.mean([one.get("cpu_seconds", math.nan) for one in finished.values()])),
    )


def replayed_row(method: Method, model: str, pool: Sequence[PoolPrompt]) -> Row:
    """Return the row of a plan on the prompts of a pool: the mean over orders of their trajectories."""
    resolved = resolve(job(method, model, 0))
    plan = resolved.plan
    text, *each = costs_by_segment(resolved)
    rng = np.random.default_rng(7)
    orders = [np.arange(POOL_SIZE), *(rng.permutation(POOL_SIZE) for _ in range(ORDERS - 1))]
    if trajectories_needed(plan) == POOL_SIZE and plan.rounds.most == 1 and not _draws(plan):
        orders = orders[:1]  # every order begins with all of them, and nothing is left to chance
    accuracy, cost, reward, counts, repeated = [], [], [], [], []
    for prompt in pool:
        found = [
            replay_plan(plan, prompt.trajectories, prompt_key=prompt.key, order=order, run_seed=place)
            for place, order in enumerate(orders)
        ]
        best = [one.best for one in found]
        ran = np.array([one.trajectories for one in found], dtype=np.float64)
        accuracy.append(prompt.correct[best].mean())
        reward.append(prompt.trajectories.rewards[best, -1].mean())
        cost.append(text + (ran @ np.array(each)).mean())
        counts.append(ran.mean(axis=0))
        repeated.append(np.mean([one.repeats > 0 for one in found]))
    return Row(
        name=method.name,
        kind="replayed",
        rows=np.array([prompt.row for prompt in pool]),
        accuracy=np.array(accuracy),
        reward=np.array(reward),
        cost=np.array(cost),
        tokens=float((np.array(counts) @ tokens_by_segment(plan)).mean()),
        approximate=float(np.mean(repeated)),
    )


def _draws(plan: Plan) -> bool:
    """Whether chance or the order of slots decides in a selection."""
    return any(one.operator.name not in ("top-k", "likelihood", "keep") for one in plan.selections)


def over_prompts(values: np.ndarray) -> Interval:
    """Return the mean of one number a prompt with its interval, the same at each call."""
    return interval(values, random=np.random.default_rng(0))


def markdown(rows: Sequence[Row], curve: BestOfCurve | None) -> str:
    """Return the table: rows of one kind after the other, by cost; differences from best-of-8 are paired."""
    anchor = next((row for row in rows if row.name == "best-of-8"), None)
    head = [
        "method",
        "how",
        "prompts",
        "cost",
        "tokens",
        "CPU s",
        "accuracy",
        "minus best-of-8",
        "minus best-of-N at equal FLOPs",
        "reward",
    ]
    lines = []
    for row in rows:
        common = row.rows if anchor is None else np.intersect1d(row.rows, anchor.rows)
        minus = equal = ""
        if anchor is not None and len(common):
            minus = "" if row is anchor else f"{over_prompts(row.on(common) - anchor.on(common)):+.3f}"
            reached = None if curve is None or row.kind == "pool" else curve.at(float(row.cost.mean()))
            if reached is not None:
                equal = f"{over_prompts(row.on(common) - reached[np.searchsorted(anchor.rows, common)]):+.3f}"
        cells = [
            row.name,
            row.kind if not row.approximate else f"{row.kind}, {row.approximate:.0%} approximate",
            str(len(row.rows)),
            f"{row.cost.mean():.2f}",
            f"{row.tokens:.2f}",
            "" if math.isnan(row.seconds) else f"{row.seconds:.2f}",
            f"{over_prompts(row.accuracy):.3f}",
            minus,
            equal,
            "" if np.isnan(row.reward).any() else f"{row.reward.mean():.2f}",
        ]
        lines.append(cells)
    return as_markdown(head, lines)
