"""The table of docs/results.md: raw, best-of-N, resampling, TTS-VAR and its controls on the built-in model.

    python -m benchmarks.shapes_results --per-kind 100 --repetitions 2

Every method runs the reporting prompts (never used for tuning) with fresh random streams per repetition.
Accuracy is the exact checker's verdict on the image with the best reward. One number per prompt, the mean
over its repetitions, enters the standard errors; differences are paired over prompts. Two costs are
given, both over those of one image: tokens through the transformer, and FLOPs with every decode, score
and embedding counted. Best-of-k is the mean over all subsets of k images of one pool; between two k lies
the policy that tosses a coin between them, so best-of-N is exact at any cost up to the pool's.
Finished pieces are kept in the work folder: the same command goes on after a stop. Beside the table it
gets results.json and outcomes.parquet, with every prompt's outcome in every repetition.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.statistics import estimate, paired_difference
from recipes.shapes.prompt_set import prompt_set
from ttsvar_ray.cli.plan_report import job_report
from ttsvar_ray.config import JobConfig
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.resolved import ResolvedJob, resolve
from ttsvar_ray.results import PromptFailure
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.shapes.checker import check
from ttsvar_ray.types import Prompt

POOL = 16
"""Best-of-N rows up to this N come from one pool of this many images per prompt and repetition."""
SIZES = (1, 2, 4, 8, 16)
EXCHANGED = ("position", "color_attr")
"""The kinds in which one image is right by chance: the model does not bind what the prompt says of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A row of the table: a name and the `strategy` section of its job."""

    name: str
    strategy: Mapping[str, Any]


def control(name: str, survivors: Sequence[tuple[int, int]], operator: str = "resample") -> Method:
    """Return a search without clustering.

    Args:
        name: of its row.
        survivors: (first scale, population from there on); each but the first is a selection after the scale.
        operator: of the selections.
    """
    schedule = [[kept for first, kept in survivors if first <= scale][-1] for scale in range(13)]
    selections = [{"scale": scale, "operator": operator} for scale, _ in survivors[1:]]
    return Method(
        name=name, strategy={"name": "tts-var", "batch_schedule": schedule, "selections": selections}
    )


POOL_METHOD = Method(name="pool", strategy={"name": "best-of-n", "n": POOL})
SEARCHES = (
    Method(name="TTS-VAR, model's plan, N=1", strategy={"name": "tts-var", "plan": "model", "n": 1}),
    Method(name="TTS-VAR, model's plan, N=2", strategy={"name": "tts-var", "plan": "model", "n": 2}),
    Method(name="TTS-VAR, published plan, N=1", strategy={"name": "tts-var", "plan": "published", "n": 1}),
    Method(name="TTS-VAR, published plan, N=2", strategy={"name": "tts-var", "plan": "published", "n": 2}),
    # Trajectories dropped before anything is known of them are trajectories not started.
    control("published plan without clustering: 4, resample 6 and 9", [(0, 4), (6, 2), (9, 1)]),
    control("model's plan without clustering: 8, resample 6 and 9", [(0, 8), (6, 2), (9, 1)]),
    control("one cut: 8, the best at 6", [(0, 8), (6, 1)], "top-k"),
    *(
        Method(name=f"resampling alone, N={n}", strategy={"name": "importance", "plan": "published", "n": n})
        for n in (2, 4, 8)
    ),
)


def job(method: Method, model: str, seed: int) -> JobConfig:
    """Return the job of one method and repetition; all finalists are kept, ranked by reward."""
    return JobConfig.model_validate(
        {
            "model": {"name": model},
            "strategy": dict(method.strategy),
            "engine": {"micro_batch_rows": 48, "threads": 1},
            "output": {"keep": "all"},
            "seed": seed,
        }
    )


def token_forwards(plan: Plan) -> float:
    """Return the tokens that one prompt runs through the transformer, over those of one image."""
    tokens = np.array([height * width for height, width in plan.scale_schedule])
    return float((tokens * np.array(plan.population_before)).sum() / tokens.sum())


def run_piece(arguments: tuple[Method, str, str, int, int, int, int, Path]) -> None:
    """Run one method and repetition on one share of the prompts and write rewards and verdicts."""
    method, model, prompts_of, seed, per_kind, share, shares, path = arguments
    if path.exists():
        return
    captions = prompt_set(prompts_of, per_kind)
    seen: dict[str, int] = {}
    prompts = []
    for row, caption in enumerate(captions):
        ordinal = seen.get(caption.text, 0)
        seen[caption.text] = ordinal + 1
        if row % shares == share:
            prompts.append(Prompt(row=row, prompt_id=caption.text, ordinal=ordinal, text=caption.text))
    config = job(method, model, seed)
    resolved = resolve(config)
    results = {}
    settings = CoordinatorSettings(spread=1, keep="all", live_rows=200)
    engine = build_engine(resolved)
    for outcome in run_local(prompts, plan=resolved.plan, engines=[engine], run_seed=seed, settings=settings):
        if isinstance(outcome, PromptFailure):
            raise RuntimeError(f"{outcome.prompt.text}: {outcome.errors[-1]}")
        verdicts = []
        for image in outcome.images:
            pixels = np.asarray(Image.open(io.BytesIO(image.image.payload)).convert("RGB"))
            verdicts.append(bool(check(pixels, outcome.prompt.text).correct))
        results[outcome.prompt.row] = {
            "rewards": [image.reward for image in outcome.images],
            "correct": verdicts,
            "slots": [image.lineage[-1] for image in outcome.images],
            "kind": captions[outcome.prompt.row].kind.value,
        }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results))
    partial.replace(path)


def load_pieces(folder: Path, method: Method, repetition: int, shares: int) -> dict[int, dict[str, Any]]:
    """Return the outcomes of one method and repetition by prompt row."""
    merged: dict[int, dict[str, Any]] = {}
    for share in range(shares):
        text = piece_path(folder, method, repetition, share, shares).read_text()
        merged |= {int(row): value for row, value in json.loads(text).items()}
    return dict(sorted(merged.items()))


def piece_path(folder: Path, method: Method, repetition: int, share: int, shares: int) -> Path:
    """Return the file of one piece."""
    slug = "".join(c if c.isalnum() else "-" for c in method.name)
    return folder / f"{slug}-rep{repetition}-{share}of{shares}.json"


def prompt_flops(resolved: ResolvedJob) -> float:
    """Return the FLOPs of one prompt, everything counted, as `ttsvar-ray plan` counts them."""
    counted = job_report(resolved).counted
    assert counted is not None
    return counted.cost.flops


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
        flops: float64 [POOL], of k = 1 to POOL, over those of one image.
        accuracy: float64 [POOL, prompts].
        reward: float64 [POOL], mean.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table.

    Attributes:
        method: its name.
        tokens: through the transformer, over those of one image.
        flops: of everything, over those of one image.
        accuracy: float64 [prompts], the mean over repetitions.
        reward: of the chosen image, mean; NaN where no reward chose.
        equal: what best-of-N reaches per prompt at these FLOPs; None where that is not asked.
    """

    method: str
    tokens: float
    flops: float
    accuracy: np.ndarray
    reward: float
    equal: np.ndarray | None = None


def best_of_curve(folder: Path, model: str, repetitions: int, shares: int) -> BestOfCurve:
    """Return best-of-k from the pool's finished pieces."""
    flops = np.array([prompt_flops(resolve(job(_best_of(size), model, 0))) for size in range(1, POOL + 1)])
    pools = [load_pieces(folder, POOL_METHOD, rep, shares).values() for rep in range(repetitions)]
    scores = np.array(
        [
            [
                [
                    best_of(np.array(result["correct"], dtype=np.float64), np.array(result["rewards"]), size)
                    for result in pool
                ]
                for pool in pools
            ]
            for size in range(1, POOL + 1)
        ]
    ).mean(axis=1)
    return BestOfCurve(flops=flops / flops[0], accuracy=scores[:, :, 0], reward=scores[:, :, 1].mean(axis=1))


def rows_of_table(
    folder: Path, model: str, repetitions: int, shares: int, searches: Sequence[Method]
) -> list[Row]:
    """Return the table's rows from the finished pieces."""
    curve = best_of_curve(folder, model, repetitions, shares)
    one_image = prompt_flops(resolve(job(_best_of(1), model, 0)))
    rows = [
        Row(
            method="raw" if size == 1 else f"best-of-{size}",
            tokens=float(size),
            flops=float(curve.flops[size - 1]),
            accuracy=curve.accuracy[size - 1],
            reward=float(curve.reward[size - 1]),
        )
        for size in SIZES
    ]
    pools = [load_pieces(folder, POOL_METHOD, rep, shares) for rep in range(repetitions)]
    ceiling = np.array([[float(any(r["correct"])) for r in pool.values()] for pool in pools]).mean(axis=0)
    rows.append(
        Row(
            method=f"any of {POOL} right (a perfect judge)",
            tokens=float(POOL),
            flops=float(curve.flops[-1]),
            accuracy=ceiling,
            reward=math.nan,
        )
    )
    for method in searches:
        runs = [load_pieces(folder, method, rep, shares) for rep in range(repetitions)]
        resolved = resolve(job(method, model, 0))
        flops = prompt_flops(resolved) / one_image
        rows.append(
            Row(
                method=method.name,
                tokens=token_forwards(resolved.plan),
                flops=flops,
                accuracy=np.array([[float(r["correct"][0]) for r in run.values()] for run in runs]).mean(
                    axis=0
                ),
                reward=float(np.mean([[r["rewards"][0] for r in run.values()] for run in runs])),
                equal=curve.at(flops),
            )
        )
    return rows


def _best_of(size: int) -> Method:
    return Method(name=f"best-of-{size}", strategy={"name": "best-of-n", "n": size})


def outcomes(
    folder: Path, per_kind: int, repetitions: int, shares: int, searches: Sequence[Method]
) -> pa.Table:
    """Return a row per method, repetition, prompt and kept image, the best by reward first."""
    texts = [caption.text for caption in prompt_set("reporting", per_kind)]
    return pa.Table.from_pylist(
        [
            {
                "method": method.name,
                "repetition": repetition,
                "row": row,
                "prompt": texts[row],
                "kind": result["kind"],
                "rank": rank,
                "reward": reward,
                "correct": correct,
            }
            for method in (POOL_METHOD, *searches)
            for repetition in range(repetitions)
            for row, result in load_pieces(folder, method, repetition, shares).items()
            for rank, (reward, correct) in enumerate(zip(result["rewards"], result["correct"], strict=True))
        ]
    )


def markdown(rows: Sequence[Row], kinds: np.ndarray) -> str:
    """Return the table; `kinds` is str [prompts]."""
    names = list(dict.fromkeys(kinds))
    others = ~np.isin(kinds, EXCHANGED)
    raw = rows[0].accuracy
    head = [
        "method",
        "tokens",
        "FLOPs",
        "accuracy",
        "minus raw",
        f"minus raw, without {' and '.join(EXCHANGED)}",
        "minus best-of-N at equal FLOPs",
        "reward",
        *names,
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        is_raw = row is rows[0]
        cells = [
            row.method,
            f"{row.tokens:.2f}",
            f"{row.flops:.2f}",
            str(estimate(row.accuracy)),
            "" if is_raw else f"{paired_difference(row.accuracy, raw):+}",
            "" if is_raw else f"{paired_difference(row.accuracy[others], raw[others]):+}",
            "" if row.equal is None else f"{paired_difference(row.accuracy, row.equal):+}",
            "" if math.isnan(row.reward) else f"{row.reward:.2f}",
            *(f"{row.accuracy[kinds == name].mean():.2f}" for name in names),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def numbers(row: Row, kinds: np.ndarray) -> dict[str, Any]:
    """Return a row as results.json has it."""
    equal = None if row.equal is None else paired_difference(row.accuracy, row.equal)
    return {
        "method": row.method,
        "tokens": row.tokens,
        "flops": row.flops,
        "accuracy": float(np.mean(row.accuracy)),
        "standard_error": estimate(row.accuracy).standard_error,
        "reward": None if math.isnan(row.reward) else row.reward,
        "minus_best_of_n": None if equal is None else [equal.mean, equal.standard_error],
        "kinds": {name: float(row.accuracy[kinds == name].mean()) for name in dict.fromkeys(kinds)},
    }


def main() -> None:
    """Run what is missing, then print the table and write it with its numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--per-kind", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--shares", type=int, default=4, help="pieces that each method's prompts are cut into"
    )
    parser.add_argument("--work-dir", type=Path, default=Path("outputs/shapes-results"))
    parser.add_argument(
        "--methods", nargs="+", help="searches of these names alone, beside raw and best-of-N; default: all"
    )
    options = parser.parse_args()
    if unknown := set(options.methods or ()) - {method.name for method in SEARCHES}:
        parser.error(
            f"--methods: expected some of {[m.name for m in SEARCHES]}, got {', '.join(sorted(unknown))}"
        )
    searches = [m for m in SEARCHES if options.methods is None or m.name in options.methods]
    folder: Path = options.work_dir
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [
        (
            method,
            options.model,
            "reporting",
            1000 + rep,
            options.per_kind,
            share,
            options.shares,
            piece_path(folder, method, rep, share, options.shares),
        )
        for rep in range(options.repetitions)
        for method in (POOL_METHOD, *searches)
        for share in range(options.shares)
    ]
    with get_context("spawn").Pool(options.processes) as workers:
        for number, _ in enumerate(workers.imap_unordered(run_piece, pieces), start=1):
            print(f"{number}/{len(pieces)} pieces", flush=True)
    rows = rows_of_table(folder, options.model, options.repetitions, options.shares, searches)
    kinds = np.array([r["kind"] for r in load_pieces(folder, POOL_METHOD, 0, options.shares).values()])
    table = markdown(rows, kinds)
    print(f"{len(kinds)} prompts, {options.repetitions} repetitions\n{table}")
    (folder / "table.md").write_text(table + "\n")
    summary = {
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "prompts": len(kinds),
        "repetitions": options.repetitions,
        "rows": [numbers(row, kinds) for row in rows],
    }
    (folder / "results.json").write_text(json.dumps(summary, indent=1))
    pq.write_table(
        outcomes(folder, options.per_kind, options.repetitions, options.shares, searches),
        folder / "outcomes.parquet",
        compression="zstd",
    )


if __name__ == "__main__":
    main()
