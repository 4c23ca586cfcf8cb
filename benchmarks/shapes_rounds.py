"""Adaptive search of up to sixteen rounds, with thresholds from 600 tuning prompts, on the reporting prompts.

    python -m benchmarks.shapes_pool --set tuning --per-kind 100 --pool 16 --output outputs/tuning.npz
    python -m benchmarks.shapes_rounds outputs/tuning.npz

The thresholds of each budget are those that `ttsvar-ray calibrate` would choose on the pool; with `--by
reward` those that it would choose if it had no checker, as it has none for any other model. Searches with
them then run on the frontier's prompts, which had no part in it (docs/results.md, "Sixteen rounds"), or, with
`--on tuning`, on those that they were chosen on, with fresh random numbers. Finished pieces are kept in the
work folder; it gets results.json and outcomes.parquet.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.shapes_methods import GUIDED_EARLY, GUIDED_NAME, adaptive_strategy
from benchmarks.shapes_pieces import HARD_MODEL, SETS, Method, Share, job, load_pieces, piece_path, run_piece
from benchmarks.shapes_results import SEED, SHARES, numbers, outcomes, run_all
from benchmarks.shapes_rows import Row, markdown, run_row
from ttsvar_ray.cli.calibrate import costs_of
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.search.calibration import Calibrated, Pool, calibrate

SCALES = (4, 5, 6, 7, 8, 12)
"""Where `ttsvar-ray calibrate` looks at the built-in model, and the end."""
BUDGETS = (1.5, 2.0, 2.5, 3.0, 4.0)
GUIDED = (1.5, 2.0, 2.5)
"""Budgets whose searches run once more with guidance that ends early: up to there they draw the same."""


def named(budget: float, rounds: int = 16, by: str = "accuracy") -> str:
    """Return the name of a search."""
    return f"adaptive, {rounds} rounds, budget {budget:g}" + (", chosen by reward" if by == "reward" else "")


def chosen(path: Path, model: str, budgets: Sequence[float], by: str) -> dict[float, Calibrated]:
    """Return the thresholds of each budget, chosen on a pool of `benchmarks.shapes_pool`.

    Args:
        by: what is to be high: "accuracy" by the exact checker, or the final "reward".
    """
    content = np.load(path)
    rewards = content["rewards"][:, :, SCALES].astype(np.float64)
    pool = Pool(
        scales=SCALES,
        rewards=rewards,
        quality=content["correct"].astype(np.float64) if by == "accuracy" else rewards[:, :, -1],
        texts=np.unique(content["texts"], return_inverse=True)[1],
    )
    costs = costs_of(resolve(job(Method(name="", strategy={"name": "raw"}), model, 0)))
    return calibrate(pool, budgets=budgets, max_rounds=pool.final.shape[1], image_costs=costs)


def methods(found: Mapping[float, Calibrated], by: str) -> list[Method]:
    """Return the searches, those with less guidance last."""
    searches = {
        budget: Method(name=named(budget, one.rounds.most, by), strategy=adaptive_strategy(one.rounds))
        for budget, one in found.items()
    }
    return [
        *searches.values(),
        *(
            Method(name=GUIDED_NAME.format(one.name), strategy=one.strategy, sampling=GUIDED_EARLY)
            for budget, one in searches.items()
            if budget in GUIDED
        ),
    ]


def with_rounds(rows: Sequence[Row], finished: Sequence[Mapping[int, Any]]) -> pa.Table:
    """Return every prompt's outcome and its rounds, as many as trajectories of the first segment."""
    counts = [own[at]["trajectories"][0] for row, own in zip(rows, finished, strict=True) for at in row.rows]
    return outcomes(rows).append_column("rounds", pa.array(counts, pa.int32()))


def main() -> None:
    """Choose, run what is missing, print the table and write it with every prompt's outcome."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=Path)
    parser.add_argument("--set", choices=SETS, default=next(iter(SETS)), help="which kinds of captions")
    parser.add_argument("--model", help=f"default: shapes, of the set hard {HARD_MODEL}")
    parser.add_argument(
        "--by", choices=("accuracy", "reward"), default="accuracy", help="what thresholds raise"
    )
    parser.add_argument("--on", choices=("reporting", "tuning"), default="reporting", help="prompts that run")
    parser.add_argument("--per-kind", type=int, default=170, help="prompts of each kind that run")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="images a prompt")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work-dir", type=Path, default=Path("outputs/shapes-rounds"))
    options = parser.parse_args()
    options.model = options.model or (HARD_MODEL if options.set == "hard" else "shapes")
    folder: Path = options.work_dir / ("" if options.on == "reporting" else options.on)
    folder.mkdir(parents=True, exist_ok=True)
    found = chosen(options.pool, options.model, options.budgets, options.by)
    searches = methods(found, options.by)
    shares = [
        Share(
            prompts_of=options.on,
            per_kind=options.per_kind,
            index=index,
            of=SHARES,
            kinds=SETS[options.set],
        )
        for index in range(SHARES)
    ]
    run_all(
        [
            functools.partial(
                run_piece, method, options.model, SEED, share, piece_path(folder, method, 0, share)
            )
            for method in searches
            for share in shares
        ],
        options.processes,
    )
    finished = [load_pieces(folder, one, 0, shares) for one in searches]
    rows = [run_row(one, options.model, own) for one, own in zip(searches, finished, strict=True)]
    print(markdown(rows, None))
    told = [
        {
            "method": named(budget, one.rounds.most, options.by),
            "budget": budget,
            "reject_below": dict(one.rounds.reject_below),
            "stop_at": one.rounds.stop_at,
            "held_out_cost": float(one.held_out.cost.mean()),
            "held_out_accuracy": float(one.held_out.quality.mean()),
            "tuning_prompts": len(one.held_out.quality),
        }
        for budget, one in found.items()
    ]
    summary = {
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "chosen": told,
        "rows": [numbers(row) for row in rows],
    }
    (folder / "results.json").write_text(json.dumps(summary, indent=1))
    pq.write_table(with_rounds(rows, finished), folder / "outcomes.parquet", compression="zstd")


if __name__ == "__main__":
    main()
