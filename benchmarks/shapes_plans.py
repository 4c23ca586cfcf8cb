"""Candidate plans of the built-in model on the tuning prompts: what its own plan was chosen by.

    python -m benchmarks.shapes_plans --per-kind 20

It uses the tuning pool of `benchmarks.shapes_results` where its work folder has one: plans that keep no
trajectory twice are replayed on it, the others run.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from benchmarks.shapes_methods import REPLAYED, TWELVE
from benchmarks.shapes_pieces import (
    Method,
    Share,
    load_pieces,
    load_pool,
    piece_path,
    pool_path,
    run_piece,
    run_pool,
)
from benchmarks.shapes_results import SHARES, TUNING_SEED, run_all
from benchmarks.shapes_rows import markdown, replayed_row, run_row

RUN = (
    Method(name="tuning: 12, cluster to 8 at 4, resample 6 and 9", strategy={"name": "tts-var", **TWELVE}),
    Method(name="tuning: published plan", strategy={"name": "tts-var", "plan": "published"}),
)


def main() -> None:
    """Run and replay every candidate and print accuracy and cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--per-kind", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--work-dir", type=Path, default=Path("outputs/shapes-results"))
    options = parser.parse_args()
    folder: Path = options.work_dir
    folder.mkdir(parents=True, exist_ok=True)
    share = functools.partial(Share, prompts_of="tuning", per_kind=options.per_kind, of=SHARES)
    shares = [share(index=index) for index in range(SHARES)]
    run_all(
        [
            functools.partial(run_pool, options.model, TUNING_SEED, one, pool_path(folder, one))
            for one in shares
        ],
        options.processes,
    )
    run_all(
        [
            functools.partial(
                run_piece, method, options.model, TUNING_SEED, one, piece_path(folder, method, 0, one)
            )
            for method in RUN
            for one in shares
        ],
        options.processes,
    )
    pool = load_pool(folder, shares)
    rows = [run_row(method, options.model, load_pieces(folder, method, 0, shares)) for method in RUN]
    rows += [replayed_row(method, options.model, pool) for method in REPLAYED]
    print(markdown(rows, None))


if __name__ == "__main__":
    main()
