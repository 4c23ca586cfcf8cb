"""Paired differences over the committed outcomes of the searches of the built-in model.

    python -m benchmarks.claims

prints tables of docs/paper.md and docs/results.md: the claims, from docs/curves/frontier.parquet,
frontier_seed_1.parquet, frontier_hard.parquet and frontier_three.parquet; differences between methods of the
frontier, the same with a model of another training seed, and those of searches of sixteen rounds with both,
from frontier_rounds.parquet and frontier_rounds_seed_1.parquet, and those whose thresholds the reward alone
chose, from frontier_rounds_reward.parquet; the sweeps on three objects, from
sweeps_three.parquet; two rewards in the same searches, from finished_reward.parquet (the outcomes.parquet of
jobs/shapes/finished_reward.yaml). A claim holds where the 95 % bootstrap interval of the difference that it
predicts to be positive lies above 0.

    python -m benchmarks.claims --collect DIR ...

writes sweeps_three.parquet anew from the output folders of `ttsvar-ray compare`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.shapes_methods import ADAPTIVE_NAME, GUIDED_NAME
from benchmarks.shapes_rounds import named
from benchmarks.shapes_rows import over_prompts
from recipes.shapes.prompt_set import prompt_set
from ttsvar_ray.evaluate.comparison import Interval, Outcomes, compare, grouped_mean, interval, markdown

CURVES = Path(__file__).resolve().parents[1] / "docs" / "curves"
SETS = {
    "easier set": "frontier.parquet",
    "the same, second training seed": "frontier_seed_1.parquet",
    "harder set": "frontier_hard.parquet",
    "three objects": "frontier_three.parquet",
}
SWEEPS = CURVES / "sweeps_three.parquet"
REWARDS = CURVES / "finished_reward.parquet"
OTHER_REWARD = "finished alone: "
"""Before the name of a search that the reward that saw finished images alone steered."""
JUDGE = "shapes-checker"
CONTROLS = ("potential=value", "lambda=10", "features.extractor=pca")
"""Of the sweeps: the published plan's own settings, so that all three are one search, and the first may stand
for the others."""
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


RUN = " (run)"
"""Behind the name of a method that was run and replayed, where the run is meant."""
_CUT, _CUT_OF_4, _FINALISTS = (
    ONE_CUT.format(scale=6),
    "one cut: 4, the best at 6",
    "8, 2 at 6, the better at the end",
)
_TWELVE = "TTS-VAR, 12 trajectories, N={n}"
DIFFERENCES = (
    *(
        (ADAPTIVE_NAME.format(1.5) + how, control)
        for how in (RUN, "")
        for control in ("best-of-8", "best-of-4", _CUT + how, _TWELVE.format(n=1), PUBLISHED.format(n=1))
    ),
    (ADAPTIVE_NAME.format(1.5) + RUN, ADAPTIVE_NAME.format(1.5)),
    (_CUT, "best-of-8"),
    (_CUT + RUN, "best-of-8"),
    (_CUT + RUN, _TWELVE.format(n=1)),
    (_CUT + RUN, PUBLISHED.format(n=1)),
    *((ONE_CUT.format(scale=scale), _CUT) for scale in (5, 7)),
    (_FINALISTS, _CUT),
    *((PUBLISHED.format(n=n), control) for n in (2, 4) for control in ("best-of-8", _CUT + RUN)),
    (_TWELVE.format(n=2), _TWELVE.format(n=1)),
    *((f"resampling alone, N={n}", f"best-of-{n}") for n in (2, 4, 8)),
    (PUBLISHED.format(n=1), "published plan without clustering: 4, resample 6 and 9"),
    (_TWELVE.format(n=1), "12 trajectories without clustering: 8, resample 6 and 9"),
    *(
        (f"8, {name} to 4 at 4, the best at 6", _CUT_OF_4)
        for name in (
            "cluster",
            "density",
            "density, half at random",
            "DPP",
            "farthest points",
            "likelihood",
            "best of each cluster",
            "diverse top-k",
        )
    ),
    *((f"no reward: 8, {name}", "raw") for name in ("density to 1 at 5", "likelihood to 1 at 6")),
    *((f"8, one drawn at 6, {how}", _CUT) for how in ("lambda 10", "z-scores, lambda 3", "ranks, lambda 10")),
    ("best-of-8 by the mean of 8, 9 and 12", "best-of-8"),
    ("8, 2 at 6, the better by the mean of 8, 9 and 12", _FINALISTS),
    (GUIDED_NAME.format("raw"), "raw"),
    (GUIDED_NAME.format("best-of-8"), "best-of-8"),
    ("guided up to 9: 8, the best at 6", _CUT + RUN),
    *(
        (GUIDED_NAME.format(ADAPTIVE_NAME.format(budget)), control)
        for budget in (1.5, 1.2)
        for control in (ADAPTIVE_NAME.format(budget) + RUN, "best-of-8", "raw")
    ),
    *(
        (f"{how}: {start}, the best at 6", _CUT + RUN)
        for how, start in (
            ("guided up to 6", 8),
            ("guided from 5 on", 8),
            ("guided from 7 on", 8),
            ("guided from 7 on", 16),
            ("confidence 0.85 up to 6", 8),
            ("confidence 0.8 up to 6", 8),
        )
    ),
)
"""(method, its control) of the frontier."""
SEEDS = ("", "_seed_1")
"""In the names of files: the shipped model, and the one of another training seed."""
_OF_ALL, _EARLY = ("best-of-8", "best-of-16"), GUIDED_NAME.format
OF_ROUNDS = tuple(
    (name, control)
    for name, controls in (
        *((named(budget), (*_OF_ALL, _CUT + RUN, ADAPTIVE_NAME.format(1.5) + RUN)) for budget in (1.5, 2)),
        *(
            (
                _EARLY(named(budget)),
                (*_OF_ALL, "guided up to 9: 8, the best at 6", _EARLY(ADAPTIVE_NAME.format(1.5))),
            )
            for budget in (1.5, 2)
        ),
    )
    for control in controls
)
"""(search of sixteen rounds, its control of the frontier)."""
OF_REWARD = tuple(
    (name(named(budget, by="reward")), control)
    for budget in (1.5, 2)
    for name, controls in (
        (str, ("best-of-8", _CUT + RUN, ADAPTIVE_NAME.format(1.5) + RUN, named(budget))),
        (_EARLY, ("best-of-8", _EARLY(named(budget)))),
    )
    for control in controls
)
"""(search of sixteen rounds whose thresholds the reward alone chose, its control)."""


def outcomes(file: str) -> dict[str, pd.DataFrame]:
    """Return correctness and cost of every prompt, by row, for each method.

    Where a method was replayed and run, the replay has its name, because it has the pool's own trajectories;
    the run is `NAME (run)`.
    """
    found = (
        pq.read_table(CURVES / file)
        .to_pandas()
        .sort_values("how", key=lambda how: how != "run", kind="stable")
    )
    by_name: dict[str, pd.DataFrame] = {}
    for (method, how), own in found.groupby(["method", "how"], sort=False):
        by_row = own.set_index("row").sort_index()[["correct", "cost"]]
        by_name[method] = by_row
        if how == "run":
            by_name[method + RUN] = by_row
    return by_name


class _Pair:
    """Two methods on the prompts that both have: how much more often the first is right, and both costs."""

    def __init__(self, one: pd.DataFrame, other: pd.DataFrame) -> None:
        rows = one.index.intersection(other.index)
        self.values = one["correct"][rows] - other["correct"][rows]
        self.costs = [f"{way['cost'][rows].mean():.2f}" for way in (one, other)]
        self.found = over_prompts(self.values.to_numpy())

    def __str__(self) -> str:
        return f"{self.found:+.3f}"


def table() -> str:
    """Return the claims in Markdown."""
    found_in = {name: outcomes(file) for name, file in SETS.items()}
    lines = []
    for claim, first, control in CLAIMS:
        cells = [claim, f"{first} minus {control}"]
        for own in found_in.values():
            if not {first, control} <= own.keys():
                cells.append("not run")
                continue
            pair = _Pair(own[first], own[control])
            verdict = "the reverse holds" if pair.found.high < 0 else "not shown"
            verdict = "holds" if pair.found.low > 0 else verdict
            cells.append(f"{verdict}: {pair}, {len(pair.values)} prompts")
        lines.append(cells)
    return markdown(["claim", "difference", *SETS], lines)


def differences() -> str:
    """Return what separates methods of the frontier, in Markdown."""
    own, lines = outcomes("frontier.parquet"), []
    for first, control in DIFFERENCES:
        pair = _Pair(own[first], own[control])
        lines.append([first, pair.costs[0], control, pair.costs[1], str(pair), str(len(pair.values))])
    return markdown(["method", "cost", "its control", "its cost", "difference", "prompts"], lines)


def rounds() -> str:
    """Return what separates searches of sixteen rounds from the frontier's, with both models, in Markdown."""
    models = [
        (outcomes(f"frontier{seed}.parquet"), outcomes(f"frontier_rounds{seed}.parquet")) for seed in SEEDS
    ]
    lines = []
    for name, control in OF_ROUNDS:
        cells = [name, control]
        for before, own in models:
            if control not in before:
                cells += ["not run", ""]
                continue
            pair = _Pair(own[name], before[control])
            cells += [str(pair), " to ".join(pair.costs)]
        lines.append(cells)
    head = ["method", "its control", "shipped model", "images", "second training seed", "images"]
    return markdown(head, lines)


def late() -> str:
    """Return what the rounds from the ninth on change at a budget of 1.5, in Markdown."""
    lines = []
    for model, seed in zip(("shipped model", "second training seed"), SEEDS, strict=True):
        own = pq.read_table(CURVES / f"frontier_rounds{seed}.parquet").to_pandas()
        own = own[own["method"] == named(1.5)].set_index("row").sort_index()
        before = outcomes(f"frontier{seed}.parquet")[ADAPTIVE_NAME.format(1.5) + RUN]["correct"][own.index]
        for which, shown in (("more than 8", own["rounds"] > 8), ("up to 8", own["rounds"] <= 8)):
            right = [f"{one[shown].sum():.0f}" for one in (before, own["correct"])]
            lines.append([model, which, str(shown.sum()), *right])
    return markdown(["", "rounds", "prompts", "right with eight", "right with sixteen"], lines)


def by_reward() -> str:
    """Return what separates searches whose thresholds the reward alone chose from others, in Markdown."""
    own = outcomes("frontier_rounds_reward.parquet")
    others = outcomes("frontier.parquet") | outcomes("frontier_rounds.parquet")
    pairs = [(name, control, _Pair(own[name], others[control])) for name, control in OF_REWARD]
    lines = [[name, control, str(pair), " to ".join(pair.costs)] for name, control, pair in pairs]
    return markdown(["method", "its control", "difference", "images"], lines)


def by_text() -> str:
    """Return which differences of the easier set change their side of 0 if texts are drawn, not prompts.

    Some texts are several of its prompts, and hard or easy in all of them. A line below the table says how
    wide the intervals of all differences are by texts, and of the accuracies themselves, over what they are
    by prompts.
    """
    said = [caption.text for caption in prompt_set("reporting", 170)]
    texts = np.unique(said, return_inverse=True)[1]

    def drawn(values: pd.Series) -> Interval:
        random = np.random.default_rng(0)
        return interval(values.to_numpy(), random=random, texts=texts[values.index])

    def compared(values: pd.Series) -> tuple[Interval, Interval]:
        return over_prompts(values.to_numpy()), drawn(values)

    lines, pairs, levels = [], [], []
    for model, seed in zip(("shipped model", "second training seed"), SEEDS, strict=True):
        own = outcomes(f"frontier{seed}.parquet") | outcomes(f"frontier_rounds{seed}.parquet")
        own |= {} if seed else outcomes("frontier_rounds_reward.parquet")
        levels += [compared(row["correct"]) for row in own.values()]
        for first, control in dict.fromkeys(
            (*DIFFERENCES, *OF_ROUNDS, *OF_REWARD, *(claim[1:] for claim in CLAIMS))
        ):
            if not {first, control} <= own.keys():
                continue
            pairs.append(compared(_Pair(own[first], own[control]).values))
            before, after = pairs[-1]
            if (before.low > 0, before.high < 0) != (after.low > 0, after.high < 0):
                lines.append([first, control, model, f"{before:+.4f}", f"{after:+.4f}"])
    told = []
    for name, both in (("differences", pairs), ("accuracies", levels)):
        ratios = [(two.high - two.low) / (one.high - one.low) for one, two in both if one.high > one.low]
        told.append(f"{len(ratios)} {name} {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    head = ["method", "its control", "model", "prompts are drawn", "texts are drawn"]
    widths = f"\nWidth by texts over width by prompts, median (least to most): {'; '.join(told)}.\n"
    return markdown(head, lines) + widths


def seeds() -> str:
    """Return what separates the methods that both models ran, in Markdown."""
    models, lines = [outcomes(file) for file in (*SETS.values(),)[:2]], []
    for pair in DIFFERENCES:
        if any(name not in own for own in models for name in pair):
            continue
        cells = [*pair]
        for own in models:
            both = _Pair(*(own[name] for name in pair))
            cells.append(f"{both}, {len(both.values)} prompts")
        lines.append(cells)
    return markdown(["method", "its control", "shipped model", "second training seed"], lines)


def collect(folders: list[Path]) -> None:
    """Write every prompt's outcome of sweeps into one file, and what each variant costs."""
    tables = []
    for folder in folders:
        content = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        own = pq.read_table(folder / "outcomes.parquet").to_pandas()
        own["cost"] = own["variant"].map({row["variant"]: row["images"] for row in content["rows"]})
        tables.append(own.rename(columns={JUDGE: "correct"}))
    kept = ["variant", "cost", "row", "prompt", "correct", "reward"]
    pq.write_table(pa.Table.from_pandas(pd.concat(tables)[kept], preserve_index=False), SWEEPS)


def sweeps() -> dict[str, str]:
    """Return the tables of the sweeps on three objects in Markdown, by the setting that they vary."""
    variants = {
        name: Outcomes(
            name=name,
            scores={JUDGE: own["correct"].to_numpy(float), "reward": own["reward"].to_numpy(float)},
            reward=own["reward"].to_numpy(float),
            images=own["cost"].iloc[0],
            seconds=np.nan,
        )
        for name, own in pq.read_table(SWEEPS)
        .to_pandas()
        .sort_values("row", kind="stable")
        .groupby("variant", sort=False)
    }
    tables = {}
    for control in CONTROLS:
        setting = control.partition("=")[0]
        shown = {name: one for name, one in variants.items() if name.partition("=")[0] == setting}
        if not shown:
            continue
        shown.setdefault(control, replace(variants[CONTROLS[0]], name=control))
        groups = dict.fromkeys((JUDGE, "reward"), np.zeros(len(shown[control].reward), dtype=np.int64))
        cells = []
        for line in compare([*shown.values()], control=control, groups=groups, published={}):
            row = [line.name, f"{line.images:.2f}"]
            for judge, score in line.scores.items():
                row += [str(score), f"{line.differences[judge]:+.4f}" if line.differences else ""]
            cells.append(row)
        head = ["three objects", "cost in images", JUDGE, f"minus {control}"]
        head += ["reward that steered", f"reward minus {control}"]
        tables[setting] = markdown(head, cells)
    return tables


def rewards() -> str:
    """Return what the same searches give by two rewards, in Markdown."""
    own = pq.read_table(REWARDS).to_pandas().groupby(["variant", "row"])[JUDGE].mean()
    lines = []
    for search in own.index.unique("variant"):
        if search.startswith(OTHER_REWARD):
            continue
        both = own[search], own[OTHER_REWARD + search]
        scores = [str(grouped_mean(one.to_numpy(float))) for one in both]
        lines.append([search, *scores, f"{over_prompts((both[1] - both[0]).to_numpy(float)):+.3f}"])
    head = ["search", "shipped reward", "trained on finished images alone", "difference"]
    return markdown(head, lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", nargs="+", type=Path, metavar="DIR", help="output folders of compare")
    if folders := parser.parse_args().collect:
        collect(folders)
    by_setting = [f"{name}\n\n{text}" for name, text in sweeps().items()]
    of_frontier = [one() for one in (table, differences, seeds, rounds, late, by_reward, by_text)]
    print("\n".join([*of_frontier, *by_setting, rewards()]))
