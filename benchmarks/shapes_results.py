"""The frontier of docs/results.md: accuracy against cost of every search, on the built-in model.

    python -m benchmarks.shapes_results --per-kind 170

Every method runs the reporting prompts (never used for tuning). Accuracy is the exact checker's verdict on
the image that the method returns; the reward that steered stands beside it. Cost is FLOPs of everything that
was drawn, decoded, scored and embedded, over those of one image; CPU seconds are of the same runs, without
the checker. Three kinds of rows:

* run: the search itself, with fresh random streams;
* pool: best-of-k, the mean over all subsets of k images of a pool of 16, or of 8 with `--best-of 8`;
* replayed: a plan that keeps no trajectory twice, on 8 complete trajectories a prompt that were looked at on
  their way (`search.replay`: exact, in distribution); the mean over several orders of them.

Thresholds of adaptive searches are chosen on a pool of tuning prompts alone, for each budget. One number per
prompt enters the intervals, which are of the bootstrap over prompts, 95 %; differences are paired. Finished
pieces are kept in the work folder, the first share of the prompts of all methods before the second: the same
command goes on after a stop, and `--print` shows what is finished. Beside table.md and frontier.png it gets
results.json and outcomes.parquet, with every prompt's outcome.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.shapes_pieces import (
    POOL_SCALES,
    POOL_SIZE,
    Method,
    PoolPrompt,
    Share,
    job,
    load_pieces,
    load_pool,
    piece_path,
    pool_path,
    run_piece,
    run_pool,
)
from benchmarks.statistics import interval
from ttsvar_ray.cli.calibrate import costs_of
from ttsvar_ray.costs import image_costs
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.resolved import ResolvedJob, resolve
from ttsvar_ray.search.calibration import Pool, calibrate
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.replay import replay_plan, trajectories_needed

SHARES = 4
"""Pieces that each method's prompts are cut into; a pool's are cut into four times as many."""
BEST_OF = (8, 16)
"""Sizes of the pool of best-of-k: the scored pool, or one of its own."""
SIZES = (1, 2, 4, 8, 16)
BUDGETS = (1.2, 1.5, 2.0, 3.0)
ADAPTIVE_NAME = "adaptive, budget {:g}"
SEED, TUNING_SEED = 1000, 11
ORDERS = 8
"""Orders of a prompt's trajectories that a plan is replayed in."""


def staged(
    name: str, survivors: Sequence[tuple[int, int, Any]], *, final: Mapping[str, Any] | None = None
) -> Method:
    """Return a search of named selections.

    Args:
        name: of its row.
        survivors: (scale, population from there on, operator); the first one is the start, with no operator;
            an operator is a name, or a name with its options.
        final: how final images are ranked.
    """
    schedule = [[kept for scale, kept, _ in survivors if scale <= at][-1] for at in range(13)]
    selections = [
        {"scale": scale, **({"operator": operator} if isinstance(operator, str) else operator)}
        for scale, _, operator in survivors[1:]
    ]
    strategy = {"name": "tts-var", "batch_schedule": schedule, "selections": selections}
    return Method(name=name, strategy={**strategy, **(final or {})})


def _resample(**options: Any) -> dict[str, Any]:
    return {"operator": "resample", "options": options}


TWELVE = {
    "plan": "published",
    "batch_schedule": [12] * 4 + [8] * 2 + [2] * 3 + [1] * 4,
    "cluster_scales": [4],
    "resample_scales": [6, 9],
}
"""What the model's own plan was before one cut (docs/shapes_model.md)."""

RUN = (
    staged("one cut: 8, the best at 6", [(0, 8, None), (6, 1, "top-k")]),
    Method(name="TTS-VAR, 12 trajectories, N=1", strategy={"name": "tts-var", **TWELVE}),
    Method(name="TTS-VAR, published plan, N=1", strategy={"name": "tts-var", "plan": "published"}),
    # Trajectories dropped before anything is known of them are trajectories not started.
    staged(
        "published plan without clustering: 4, resample 6 and 9",
        [(0, 4, None), (6, 2, "resample"), (9, 1, "resample")],
    ),
    staged(
        "12 trajectories without clustering: 8, resample 6 and 9",
        [(0, 8, None), (6, 2, "resample"), (9, 1, "resample")],
    ),
    *(
        Method(name=f"resampling alone, N={n}", strategy={"name": "resampling", "plan": "published", "n": n})
        for n in (2, 4)
    ),
    Method(name="TTS-VAR, 12 trajectories, N=2", strategy={"name": "tts-var", **TWELVE, "n": 2}),
    Method(name="TTS-VAR, published plan, N=2", strategy={"name": "tts-var", "plan": "published", "n": 2}),
    Method(name="resampling alone, N=8", strategy={"name": "resampling", "plan": "published", "n": 8}),
    Method(name="TTS-VAR, 12 trajectories, N=4", strategy={"name": "tts-var", **TWELVE, "n": 4}),
    Method(name="TTS-VAR, published plan, N=4", strategy={"name": "tts-var", "plan": "published", "n": 4}),
)
POOL_METHOD = Method(name="pool", strategy={"name": "best-of-n", "n": BEST_OF[-1]})

_CUT = [(6, 1, "top-k")]
REPLAYED = (
    staged("one cut: 4, the best at 6", [(0, 4, None), *_CUT]),
    staged("one cut: 8, the best at 6", [(0, 8, None), *_CUT]),
    staged("one cut: 8, the best at 5", [(0, 8, None), (5, 1, "top-k")]),
    staged("one cut: 8, the best at 7", [(0, 8, None), (7, 1, "top-k")]),
    staged(
        "beam: 8, 4 at 5, 2 at 6, 1 at 9",
        [(0, 8, None), *((s, k, "top-k") for s, k in ((5, 4), (6, 2), (9, 1)))],
    ),
    *(
        staged(f"8, {name} to 4 at 4, the best at 6", [(0, 8, None), (4, 4, operator), *_CUT])
        for name, operator in (
            ("cluster", "cluster"),
            ("best of each cluster", "cluster-best"),
            ("farthest points", "farthest-point"),
            ("DPP", "dpp"),
            ("density", "density"),
            ("density, half at random", {"operator": "density", "options": {"random_share": 0.5}}),
            ("likelihood", "likelihood"),
            ("diverse top-k", "diverse-top-k"),
        )
    ),
    staged("8, density to 4 at 2, the best at 6", [(0, 8, None), (2, 4, "density"), *_CUT]),
    staged("8, cluster to 4 at 2, the best at 6", [(0, 8, None), (2, 4, "cluster"), *_CUT]),
    staged("8, one drawn at 6, lambda 10", [(0, 8, None), (6, 1, _resample())]),
    staged(
        "8, one drawn at 6, z-scores, lambda 3",
        [(0, 8, None), (6, 1, _resample(normalise="z-score", **{"lambda": 3}))],
    ),
    staged("8, one drawn at 6, ranks, lambda 10", [(0, 8, None), (6, 1, _resample(normalise="rank"))]),
    staged("8, 2 at 6, the better at the end", [(0, 8, None), (6, 2, "top-k")]),
    staged(
        "8, 2 at 6, the better by the mean of 8, 9 and 12",
        [(0, 8, None), (6, 2, "top-k")],
        final={"final_mean_of": [8, 9, 12]},
    ),
    Method(
        name="best-of-8 by the mean of 8, 9 and 12",
        strategy={"name": "best-of-n", "n": 8, "final_mean_of": [8, 9, 12]},
    ),
    staged("no reward: 8, density to 1 at 5", [(0, 8, None), (5, 1, "density")]),
    staged("no reward: 8, likelihood to 1 at 6", [(0, 8, None), (6, 1, "likelihood")]),
)


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
    text, *each = costs_by_segment(resolved)
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


def adaptive_methods(tuning: Sequence[PoolPrompt], model: str, known: Path) -> list[Method]:
    """Return the adaptive search of each budget, its thresholds chosen on a pool of tuning prompts.

    Args:
        known: the file that keeps them: chosen once, they are those of the finished pieces.
    """
    if known.exists():
        return [
            Method(name=name, strategy=strategy) for name, strategy in json.loads(known.read_text()).items()
        ]
    scales = [at for at, scale in enumerate(POOL_SCALES) if scale != 9]  # as `calibrate` looks at them
    pool = Pool(
        scales=tuple(POOL_SCALES[at] for at in scales),
        rewards=np.array([prompt.trajectories.rewards[:, scales] for prompt in tuning]),
        quality=np.array([prompt.correct for prompt in tuning]),
    )
    costs = costs_of(resolve(job(RUN[0], model, 0)))
    methods = []
    chosen = calibrate(pool, budgets=BUDGETS, max_rounds=POOL_SIZE, image_costs=costs)
    for budget, found in chosen.items():
        strategy = {
            "name": "adaptive",
            "max_rounds": POOL_SIZE,
            "reject_below": {scale: round(least, 4) for scale, least in found.rounds.reject_below},
            "stop_at": round(float(found.rounds.stop_at or 0.0), 4),
        }
        methods.append(Method(name=ADAPTIVE_NAME.format(budget), strategy=strategy))
    known.write_text(json.dumps({method.name: method.strategy for method in methods}, indent=1))
    return methods


def table_rows(
    options: argparse.Namespace, searches: Sequence[Method]
) -> tuple[list[Row], BestOfCurve | None]:
    """Return the rows of what is finished, and the curve of best-of-k on the prompts of the pool of 16."""
    folder, model, shares = options.work_dir, options.model, shares_of(options)
    rows: list[Row] = []
    reporting = load_pool(folder, pool_shares(options, "reporting"))
    pool = best_of_pool(options, reporting)
    curve = best_of_curve(model, pool) if pool else None
    if curve is not None:
        numbers = np.array(list(pool))
        rows += [
            Row(
                name="raw" if size == 1 else f"best-of-{size}",
                kind="pool",
                rows=numbers,
                accuracy=curve.accuracy[size - 1],
                reward=curve.reward[size - 1],
                cost=np.full(len(numbers), curve.flops[size - 1]),
                tokens=float(size),
            )
            for size in SIZES
            if size <= len(curve.flops)
        ]
        rows.append(
            Row(
                name=f"any of {len(curve.flops)} right (a perfect judge)",
                kind="pool",
                rows=numbers,
                accuracy=np.array([correct.max() for correct, _ in pool.values()]),
                reward=np.full(len(numbers), math.nan),
                cost=np.full(len(numbers), curve.flops[-1]),
                tokens=float(len(curve.flops)),
            )
        )
    tuning = load_pool(folder, pool_shares(options, "tuning"))
    adaptive = adaptive_methods(tuning, model, folder / "thresholds.json") if tuning else []
    for method in (*searches, *adaptive):
        finished = load_pieces(folder, method, 0, shares)
        if finished:
            rows.append(run_row(method, model, finished))
    if reporting:
        rows += [replayed_row(method, model, reporting) for method in (*adaptive, *REPLAYED)]
    return rows, curve


def best_of_pool(
    options: argparse.Namespace, reporting: Sequence[PoolPrompt]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return verdicts and final rewards of the images that best-of-k takes, by row."""
    if options.best_of == POOL_SIZE:
        return {one.row: (one.correct, one.trajectories.rewards[:, -1]) for one in reporting}
    finished = load_pieces(options.work_dir, POOL_METHOD, 0, shares_of(options))
    return {
        row: (np.array(one["correct"], dtype=np.float64), np.array(one["rewards"]))
        for row, one in finished.items()
    }


def shares_of(options: argparse.Namespace) -> list[Share]:
    """Return the shares of the reporting prompts that are run."""
    share = functools.partial(Share, prompts_of="reporting", per_kind=options.per_kind, of=SHARES)
    return [share(index=index) for index in range(options.shares)]


def pool_shares(options: argparse.Namespace, prompts_of: str) -> list[Share]:
    """Return the shares of a pool, those of the first prompts first; of tuning prompts there are few."""
    of = 4 * SHARES if prompts_of == "reporting" else SHARES
    per_kind = options.per_kind if prompts_of == "reporting" else options.tuning_per_kind
    indices = range(of)
    if prompts_of == "reporting":
        indices = [at + SHARES * part for at in range(options.shares) for part in range(4)]  # type: ignore[assignment]
    return [Share(prompts_of=prompts_of, per_kind=per_kind, index=index, of=of) for index in indices]


def pieces_of(options: argparse.Namespace, searches: Sequence[Method]) -> list[Callable[[], None]]:
    """Return what is to be run, in order; adaptive searches need the tuning pool and come later."""
    folder, model = options.work_dir, options.model
    pieces: list[Callable[[], None]] = []
    for share in shares_of(options):
        pieces += [
            functools.partial(run_pool, model, SEED, one, pool_path(folder, one))
            for one in pool_shares(options, "reporting")
            if one.index % SHARES == share.index
        ]
        pieces += [
            functools.partial(run_piece, method, model, SEED, share, piece_path(folder, method, 0, share))
            for method in (*([POOL_METHOD] if options.best_of != POOL_SIZE else []), *searches)
        ]
    return pieces


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
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        common = row.rows if anchor is None else np.intersect1d(row.rows, anchor.rows)
        minus = equal = ""
        if anchor is not None and len(common):
            minus = "" if row is anchor else f"{interval(row.on(common) - anchor.on(common)):+}"
            reached = None if curve is None or row.kind == "pool" else curve.at(float(row.cost.mean()))
            if reached is not None:
                equal = f"{interval(row.on(common) - reached[np.searchsorted(anchor.rows, common)]):+}"
        cells = [
            row.name,
            row.kind if not row.approximate else f"{row.kind}, {row.approximate:.0%} approximate",
            str(len(row.rows)),
            f"{row.cost.mean():.2f}",
            f"{row.tokens:.2f}",
            "" if math.isnan(row.seconds) else f"{row.seconds:.2f}",
            str(interval(row.accuracy)),
            minus,
            equal,
            "" if np.isnan(row.reward).any() else f"{row.reward.mean():.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], picture: Path) -> None:
    """Draw accuracy against cost."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 5.5))
    groups = {
        "best-of-N": [row for row in rows if row.kind == "pool" and "any" not in row.name],
        "adaptive": [row for row in rows if "adaptive" in row.name and row.kind == "replayed"],
        "TTS-VAR": [row for row in rows if row.name.startswith("TTS-VAR")],
        "resampling alone": [row for row in rows if row.name.startswith("resampling")],
        "other plans": [
            row
            for row in rows
            if row.kind != "pool" and not row.name.startswith(("TTS-VAR", "resampling", "adaptive"))
        ],
    }
    for (label, members), marker in zip(groups.items(), "osD^.", strict=True):
        if not members:
            continue
        ordered = sorted(members, key=lambda row: float(row.cost.mean()))
        shown = [interval(row.accuracy) for row in ordered]
        mean = np.array([one.mean for one in shown])
        axis.errorbar(
            [float(row.cost.mean()) for row in ordered],
            mean,
            yerr=[mean - [one.low for one in shown], [one.high for one in shown] - mean],
            marker=marker,
            linestyle="-" if label in ("best-of-N", "adaptive") else "none",
            capsize=2,
            label=label,
        )
    axis.set(xscale="log", xlabel="cost in images (FLOPs of everything)", ylabel="accuracy (exact checker)")
    axis.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def numbers(row: Row) -> dict[str, Any]:
    """Return a row as results.json has it."""
    shown = interval(row.accuracy)
    return {
        "method": row.name,
        "how": row.kind,
        "prompts": len(row.rows),
        "cost": float(row.cost.mean()),
        "tokens": row.tokens,
        "cpu_seconds": None if math.isnan(row.seconds) else row.seconds,
        "accuracy": shown.mean,
        "interval": [shown.low, shown.high],
        "reward": None if np.isnan(row.reward).any() else float(row.reward.mean()),
        "approximate": row.approximate,
    }


def outcomes(rows: Sequence[Row]) -> pa.Table:
    """Return one row per method and prompt."""
    return pa.Table.from_pylist(
        [
            {
                "method": row.name,
                "how": row.kind,
                "row": int(at),
                "correct": right,
                "cost": cost,
                "reward": reward,
            }
            for row in rows
            for at, right, cost, reward in zip(
                row.rows, row.accuracy.tolist(), row.cost.tolist(), row.reward.tolist(), strict=True
            )
        ]
    )


def _call(piece: Callable[[], None]) -> None:
    piece()


def run_all(pieces: Sequence[Callable[[], None]], processes: int) -> None:
    """Run pieces in order, so many at a time."""
    with get_context("spawn").Pool(processes) as workers:
        for number, _ in enumerate(workers.imap_unordered(_call, pieces), start=1):
            print(f"{number}/{len(pieces)} pieces", flush=True)


def main() -> None:
    """Run what is missing, then print the table and write it with its numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--per-kind", type=int, default=170, help="reporting prompts of each of six kinds")
    parser.add_argument("--tuning-per-kind", type=int, default=20)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--shares", type=int, default=SHARES, help=f"run the first so many of {SHARES} shares of the prompts"
    )
    parser.add_argument("--work-dir", type=Path, default=Path("outputs/shapes-results"))
    parser.add_argument("--best-of", type=int, choices=BEST_OF, default=BEST_OF[-1], help="largest k")
    parser.add_argument("--methods", nargs="+", help="searches of these names alone; default: all")
    parser.add_argument(
        "--print", action="store_true", dest="only_print", help="what is finished, and no more"
    )
    options = parser.parse_args()
    names = [*(method.name for method in RUN), *map(ADAPTIVE_NAME.format, BUDGETS)]
    if unknown := set(options.methods or ()) - set(names):
        parser.error(f"--methods: expected some of {names}, got {', '.join(sorted(unknown))}")
    searches = [method for method in RUN if method.name in (options.methods or names)]
    folder: Path = options.work_dir
    folder.mkdir(parents=True, exist_ok=True)
    if not options.only_print:
        tuning = pool_shares(options, "tuning")
        run_all(
            [
                functools.partial(run_pool, options.model, TUNING_SEED, one, pool_path(folder, one))
                for one in tuning
            ],
            options.processes,
        )
        adaptive = adaptive_methods(load_pool(folder, tuning), options.model, folder / "thresholds.json")
        wanted = [method for method in adaptive if method.name in (options.methods or names)]
        run_all(pieces_of(options, [*wanted, *searches]), options.processes)
    rows, curve = table_rows(options, searches)
    table = markdown(rows, curve)
    print(table)
    (folder / "table.md").write_text(table + "\n")
    draw(rows, folder / "frontier.png")
    summary = {
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "rows": [numbers(row) for row in rows],
    }
    (folder / "results.json").write_text(json.dumps(summary, indent=1))
    pq.write_table(outcomes(rows), folder / "outcomes.parquet", compression="zstd")


if __name__ == "__main__":
    main()
