"""Candidate plans of the built-in model on the tuning prompts: what its own plan was chosen by.

python -m benchmarks.shapes_plans --per-kind 60
"""

from __future__ import annotations

import argparse
import os
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.shapes_results import Method, job, load_pieces, piece_path, run_piece, token_forwards
from benchmarks.statistics import estimate
from ttsvar_ray.job.resolved import resolve


def _candidate(
    name: str, schedule: list[int], cluster: list[int], resample: list[int], lambda_: float
) -> Method:
    return Method(
        name=name,
        strategy={
            "name": "tts-var",
            "plan": "published",
            "batch_schedule": schedule,
            "cluster_scales": cluster,
            "resample_scales": resample,
            "lambda": lambda_,
        },
    )


CANDIDATES = (
    Method(name="published", strategy={"name": "tts-var", "plan": "published"}),
    _candidate("reward at 6 and 9, lambda 10", [8] * 6 + [2] * 3 + [1] * 4, [], [6, 9], 10),
    _candidate("cluster at 4, reward at 6 and 9", [12] * 4 + [8] * 2 + [2] * 3 + [1] * 4, [4], [6, 9], 10),
    _candidate(
        "cluster at 3, reward at 5, 7 and 9",
        [12] * 3 + [8] * 2 + [4] * 2 + [2] * 2 + [1] * 4,
        [3],
        [5, 7, 9],
        10,
    ),
    _candidate("reward at 7", [8] * 7 + [1] * 6, [], [7], 10),
)


def main() -> None:
    """Run every candidate once at N = 1 and print accuracy and cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--per-kind", type=int, default=60)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work-dir", type=Path, default=Path("outputs/shapes-plans"))
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    shares = 2
    pieces = [
        (
            method,
            options.model,
            "tuning",
            7,
            options.per_kind,
            share,
            shares,
            piece_path(options.work_dir, method, 0, share, shares),
        )
        for method in CANDIDATES
        for share in range(shares)
    ]
    with get_context("spawn").Pool(options.processes) as workers:
        workers.map(run_piece, pieces, chunksize=1)
    for method in CANDIDATES:
        outcomes = load_pieces(options.work_dir, method, 0, shares).values()
        correct = np.array([float(outcome["correct"][0]) for outcome in outcomes])
        cost = token_forwards(resolve(job(method, options.model, 0)).plan)
        print(f"{method.name:36s} cost {cost:.2f}  accuracy {estimate(correct)}")


if __name__ == "__main__":
    main()
