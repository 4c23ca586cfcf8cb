"""Which of the paper's claims hold on the built-in model: paired differences over the committed outcomes.

    python -m benchmarks.claims

prints the table of docs/paper.md from docs/curves/frontier.parquet and frontier_hard.parquet. A claim holds
where the 95 % bootstrap interval of the difference that it predicts to be positive lies above 0.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.shapes_rows import over_prompts
from ttsvar_ray.evaluate.comparison import markdown

CURVES = Path(__file__).resolve().parents[1] / "docs" / "curves"
SETS = {"easier set": "frontier.parquet", "harder set": "frontier_hard.parquet"}
PUBLISHED, ONE_CUT = "TTS-VAR, published plan, N={n}", "one cut: 8, the best at {scale}"
CLAIMS = (
    ("a search is right more often than one image", PUBLISHED.format(n=1), "raw"),
    ("at N=2 than best-of-8", PUBLISHED.format(n=2), "best-of-8"),
    ("more trajectories are better", PUBLISHED.format(n=2), PUBLISHED.format(n=1)),
    ("", PUBLISHED.format(n=4), PUBLISHED.format(n=2)),
    (
        "clustering early keeps what pays later (against the same plan started with what it leaves)",
        PUBLISHED.format(n=1),
        "published plan without clustering: 4, resample 6 and 9",
    ),
    ("", "8, cluster to 4 at 2, the best at 6", "one cut: 4, the best at 6"),
    ("", "8, cluster to 4 at 4, the best at 6", "one cut: 4, the best at 6"),
    ("resampling by reward beats one image", "8, one drawn at 6, lambda 10", "raw"),
    ("resampling alone beats as many whole images", "resampling alone, N=2", "best-of-2"),
    ("at coarse scales the reward knows too little", ONE_CUT.format(scale=6), ONE_CUT.format(scale=5)),
    ("clustering and drawing beat one cut by reward", PUBLISHED.format(n=1), ONE_CUT.format(scale=6)),
)
"""(the claim, "" for another difference of the one before; the method that it prefers; its control)."""


def table() -> str:
    """Return the claims in Markdown."""
    correct = {}
    for name, file in SETS.items():
        # Where a method was replayed and run, the replay counts: it has the pool's own trajectories.
        outcomes = pq.read_table(CURVES / file).to_pandas().sort_values("how", key=lambda how: how != "run")
        correct[name] = {
            method: own.set_index("row").sort_index()["correct"]
            for (method, _), own in outcomes.groupby(["method", "how"], sort=False)
        }
    lines = []
    for claim, first, control in CLAIMS:
        cells = [claim, f"{first} minus {control}"]
        for own in correct.values():
            if not {first, control} <= own.keys():
                cells.append("not run")
                continue
            rows = own[first].index.intersection(own[control].index)
            found = over_prompts((own[first][rows] - own[control][rows]).to_numpy())
            verdict = "holds" if found.low > 0 else "the reverse holds" if found.high < 0 else "not shown"
            cells.append(f"{verdict}: {found:+.3f}, {len(rows)} prompts")
        lines.append(cells)
    return markdown(["claim", "difference", *SETS], lines)


if __name__ == "__main__":
    print(table())
