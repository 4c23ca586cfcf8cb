"""Our k-means++ against scikit-learn's on random points: milliseconds, and which is tighter.

    python -m benchmarks.k_means

Prints the table of docs/search.md, as JSON with the machine. 256 features and 10 restarts, as in a plan.
"""

from __future__ import annotations

import json
import time

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from benchmarks.machine import cpu_name
from ttsvar_ray.search.operators.cluster import k_means

SIZES = ((4, 3), (6, 4), (8, 6), (16, 12), (32, 24), (64, 48))
FEATURES = 256
RESTARTS = 10


def compare(population: int, survivors: int, repeats: int) -> dict[str, float]:
    """Return milliseconds of both, and the shares of populations where either is tighter."""
    seconds = np.zeros((repeats, 2))
    inertias = np.zeros((repeats, 2))
    for seed in range(repeats):
        points = np.random.default_rng(seed).standard_normal((population, FEATURES))
        started = time.perf_counter()
        ours = k_means(points, survivors, np.random.default_rng(seed), RESTARTS)
        between = time.perf_counter()
        theirs = KMeans(survivors, n_init=RESTARTS, random_state=seed).fit(points)
        seconds[seed] = between - started, time.perf_counter() - between
        groups = [points[ours == label] for label in np.unique(ours)]
        inertias[seed] = sum(np.square(g - g.mean(axis=0)).sum() for g in groups), theirs.inertia_
    tighter = inertias[:, 0] - inertias[:, 1]
    rounding = 1e-9 * inertias[:, 1]
    return {
        "milliseconds": round(1e3 * float(np.median(seconds[:, 0])), 2),
        "scikit_learn_milliseconds": round(1e3 * float(np.median(seconds[:, 1])), 2),
        "equal": float(np.mean(np.abs(tighter) <= rounding)),
        "tighter": float(np.mean(tighter < -rounding)),
        "scikit_learn_tighter": float(np.mean(tighter > rounding)),
    }


def main() -> None:
    """Compare at every size and print."""
    # A coordinator shares its cores with others; threads cost more than they bring at these sizes.
    with threadpool_limits(1):
        table = {
            f"{population} to {survivors}": compare(population, survivors, 200 if population < 32 else 30)
            for population, survivors in SIZES
        }
    print(json.dumps({"cpu": cpu_name(), "sizes": table}, indent=1))


if __name__ == "__main__":
    main()
