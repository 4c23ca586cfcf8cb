"""The frontier of docs/results.md: accuracy against cost of every search, on the built-in model.

    python -m benchmarks.shapes_results --per-kind 170
    python -m benchmarks.shapes_results --set hard --per-kind 120 --tuning-per-kind 24 --best-of 8

Every method runs the reporting prompts (never used for tuning). Accuracy is the exact checker's verdict on
the image that the method returns; the reward that steered stands beside it. Cost is FLOPs of everything that
was drawn, decoded, scored and embedded, over those of one image; CPU seconds are of the same runs, without
the checker. Three kinds of rows:

* run: the search itself, with fresh random streams;
* pool: best-of-k, the mean over all subsets of k images of a pool of 16, or of 8 with `--best-of 8`;
* replayed: a plan that keeps no trajectory twice, on 8 complete trajectories a prompt that were looked at on
  their way (`search.replay`: exact, in distribution); the mean over several orders of them.

What is dear, N of 2 and more and the field's ideas, comes last, and of the first share of the prompts alone.

Thresholds of adaptive searches are chosen on a pool of tuning prompts alone, for each budget. One number per
prompt enters the intervals, which are of the bootstrap over prompts, 95 %; differences are paired. Finished
pieces are kept in the work folder, the first share of the prompts before the second: the same command goes on
after a stop, and `--print` shows what is finished. Beside table.md and frontier.png it gets
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
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.shapes_methods import (
    ADAPTIVE_NAME,
    BEST_OF,
    GUIDED_EARLY,
    GUIDED_NAME,
    LAST_GUIDED,
    LOOKING,
    POOL_METHOD,
    REPLAYED,
    RUN,
    adaptive_strategy,
)
from benchmarks.shapes_pieces import (
    HARD_MODEL,
    POOL_SCALES,
    POOL_SIZE,
    SETS,
    Method,
    PoolPrompt,
    Share,
    job,
    load_pieces,
    load_pool,
    looks_path,
    piece_path,
    pool_path,
    run_looks,
    run_piece,
    run_pool,
)
from benchmarks.shapes_rows import (
    BestOfCurve,
    Row,
    best_of_curve,
    markdown,
    over_prompts,
    replayed_row,
    run_row,
)
from ttsvar_ray.cli.calibrate import costs_of
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.models.registry import describe_model
from ttsvar_ray.rewards.map_reward import MAP_PATCHES_FILE
from ttsvar_ray.search.calibration import Pool, calibrate
from ttsvar_ray.shapes.world import KINDS

SHARES = 4
"""Pieces that each method's prompts are cut into; a pool's are cut into four times as many."""
SIZES = (1, 2, 4, 8, 16)
BUDGETS = (1.2, 1.5, 2.0, 3.0)
ADAPTIVE_NAMES = (
    *map(ADAPTIVE_NAME.format, BUDGETS),
    *(GUIDED_NAME.format(ADAPTIVE_NAME.format(budget)) for budget in BUDGETS[:2]),
)
SEED, TUNING_SEED = 1000, 11


def adaptive_methods(tuning: Sequence[PoolPrompt], model: str, known: Path) -> list[Method]:
    """Return the adaptive search of each budget, its thresholds chosen on a pool of tuning prompts.

    Args:
        known: the file that keeps them: chosen once, they are those of the finished pieces.
    """
    if known.exists():
        return _with_less_guidance(json.loads(known.read_text()))
    scales = [at for at, scale in enumerate(POOL_SCALES) if scale != 9]  # as `calibrate` looks at them
    pool = Pool(
        scales=tuple(POOL_SCALES[at] for at in scales),
        rewards=np.array([prompt.trajectories.rewards[:, scales] for prompt in tuning]),
        quality=np.array([prompt.correct for prompt in tuning]),
        texts=np.arange(len(tuning)),
    )
    costs = costs_of(resolve(job(RUN[0], model, 0)))
    strategies = {}
    chosen = calibrate(pool, budgets=BUDGETS, max_rounds=POOL_SIZE, image_costs=costs)
    for budget, found in chosen.items():
        strategies[ADAPTIVE_NAME.format(budget)] = adaptive_strategy(found.rounds)
    known.write_text(json.dumps(strategies, indent=1))
    return _with_less_guidance(strategies)


def _with_less_guidance(strategies: Mapping[str, Any]) -> list[Method]:
    """Return the adaptive searches, and those of the least budgets once more without guidance of late scales.

    Up to there they draw the same trajectories, so that the same thresholds serve.
    """
    return [
        *(Method(name=name, strategy=strategy) for name, strategy in strategies.items()),
        *(
            Method(name=GUIDED_NAME.format(name), strategy=strategies[name], sampling=GUIDED_EARLY)
            for name in map(ADAPTIVE_NAME.format, BUDGETS[:2])
        ),
    ]


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
        looked = [prompt for prompt in reporting if prompt.trajectories.looked]
        thresholds = [method for method in adaptive if method.sampling is None]
        rows += [replayed_row(method, model, reporting) for method in (*thresholds, *REPLAYED)]
        rows += [replayed_row(method, model, looked) for method in LOOKING if looked]
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
    share = functools.partial(
        Share, prompts_of="reporting", per_kind=options.per_kind, of=SHARES, kinds=SETS[options.set]
    )
    return [share(index=index) for index in range(options.shares)]


def pool_shares(options: argparse.Namespace, prompts_of: str) -> list[Share]:
    """Return the shares of a pool, those of the first prompts first; of tuning prompts there are few."""
    of = 4 * SHARES if prompts_of == "reporting" else SHARES
    per_kind = options.per_kind if prompts_of == "reporting" else options.tuning_per_kind
    indices = range(of)
    if prompts_of == "reporting":
        indices = [at + SHARES * part for at in range(options.shares) for part in range(4)]  # type: ignore[assignment]
    return [
        Share(prompts_of=prompts_of, per_kind=per_kind, index=index, of=of, kinds=SETS[options.set])
        for index in indices
    ]


def pieces_of(options: argparse.Namespace, searches: Sequence[Method]) -> list[Callable[[], None]]:
    """Return what is to be run, in order; adaptive searches need the tuning pool and come later."""
    folder, model = options.work_dir, options.model
    shares = shares_of(options)
    pools = pool_shares(options, "reporting")
    main = [method for method in searches if not method.is_side]
    if options.best_of != POOL_SIZE:
        main.insert(0, POOL_METHOD)
    pieces: list[Callable[[], None]] = []
    for share in shares:
        own = [one for one in pools if one.index % SHARES == share.index]
        pieces += [functools.partial(run_pool, model, SEED, one, pool_path(folder, one)) for one in own]
        pieces += [_piece(method, model, folder, share) for method in main]
    reward = describe_model(model).reward_path
    if reward is not None and (reward / MAP_PATCHES_FILE).exists():
        own = [one for one in pools if one.index % SHARES == 0]
        pieces += [functools.partial(run_looks, model, SEED, one, looks_path(folder, one)) for one in own]
    return [*pieces, *(_piece(method, model, folder, shares[0]) for method in searches if method.is_side)]


def _piece(method: Method, model: str, folder: Path, share: Share) -> Callable[[], None]:
    return functools.partial(run_piece, method, model, SEED, share, piece_path(folder, method, 0, share))


def draw(rows: Sequence[Row], picture: Path) -> None:
    """Draw accuracy against cost."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 5.5))
    early = GUIDED_NAME.format("").strip(", ")
    groups = {
        "best-of-N": [row for row in rows if row.kind == "pool" and "any" not in row.name],
        "adaptive": [row for row in rows if "adaptive" in row.name and row.kind == "replayed"],
        f"guidance up to scale {LAST_GUIDED}": [row for row in rows if early in row.name],
        "TTS-VAR": [row for row in rows if row.name.startswith("TTS-VAR")],
        "resampling alone": [row for row in rows if row.name.startswith("resampling")],
        "other plans": [
            row
            for row in rows
            if row.kind != "pool"
            and not row.name.startswith(("TTS-VAR", "resampling", "adaptive"))
            and early not in row.name
        ],
    }
    for (label, members), marker in zip(groups.items(), "os*D^.", strict=True):
        if not members:
            continue
        ordered = sorted(members, key=lambda row: float(row.cost.mean()))
        shown = [over_prompts(row.accuracy) for row in ordered]
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
    axis.set_xticks([0.7, 1, 2, 4, 8, 16], ["0.7", "1", "2", "4", "8", "16"])
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def numbers(row: Row) -> dict[str, Any]:
    """Return a row as results.json has it."""
    shown = over_prompts(row.accuracy)
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
    parser.add_argument("--model", help=f"default: shapes, of the set hard {HARD_MODEL}")
    parser.add_argument("--set", choices=SETS, default=next(iter(SETS)), help="which kinds of captions")
    parser.add_argument("--per-kind", type=int, default=170, help="reporting prompts of each kind")
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
    options.model = options.model or (HARD_MODEL if options.set == "hard" else "shapes")
    names = [*(method.name for method in RUN), *ADAPTIVE_NAMES]
    if unknown := set(options.methods or ()) - set(names):
        parser.error(f"--methods: expected some of {names}, got {', '.join(sorted(unknown))}")
    searches = [method for method in RUN if method.name in (options.methods or names)]
    if SETS[options.set] != KINDS:
        options.work_dir /= options.set  # the pieces of two sets do not meet
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
    (folder / "table.md").write_text(table)
    draw(rows, folder / "frontier.png")
    summary = {
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "rows": [numbers(row) for row in rows],
    }
    (folder / "results.json").write_text(json.dumps(summary, indent=1))
    pq.write_table(outcomes(rows), folder / "outcomes.parquet", compression="zstd")


if __name__ == "__main__":
    main()
