"""The table of docs/results.md: raw, best-of-N, resampling alone and TTS-VAR on the built-in model.

    python -m benchmarks.shapes_results --per-kind 100 --repetitions 3

Every method runs the reporting prompts (never used for tuning) with fresh random streams per repetition.
Accuracy is the exact checker's verdict on the image with the best reward. One number per prompt, the mean
over its repetitions, enters the standard errors; differences are paired over prompts. Two costs are
given, both over those of one image: tokens through the transformer, and FLOPs with every decode, score
and embedding counted. Best-of-N at equal FLOPs is interpolated between its measured N.
Finished pieces are kept in the work folder: the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.statistics import Estimate, estimate, paired_difference
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

POOL = 8
"""Best-of-N rows up to this N come from one pool of this many images per prompt and repetition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A row of the table: a name and the `strategy` section of its job."""

    name: str
    strategy: Mapping[str, Any]


POOL_METHOD = Method(name="pool", strategy={"name": "best-of-n", "n": POOL})
SEARCHES = (
    Method(name="TTS-VAR, model's plan, N=1", strategy={"name": "tts-var", "plan": "model", "n": 1}),
    Method(name="TTS-VAR, model's plan, N=2", strategy={"name": "tts-var", "plan": "model", "n": 2}),
    Method(name="TTS-VAR, published plan, N=1", strategy={"name": "tts-var", "plan": "published", "n": 1}),
    Method(name="TTS-VAR, published plan, N=2", strategy={"name": "tts-var", "plan": "published", "n": 2}),
    Method(name="resampling alone, N=2", strategy={"name": "importance", "plan": "published", "n": 2}),
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


def best_of(result: Mapping[str, Any], size: int) -> tuple[float, float]:
    """Return (accuracy, reward) of best-of-`size`, averaged over the disjoint groups of a pool."""
    order = np.argsort(result["slots"])
    correct, rewards = np.array(result["correct"])[order], np.array(result["rewards"])[order]
    groups = np.arange(len(correct) // size * size).reshape(-1, size)
    chosen = [group[int(np.argmax(rewards[group]))] for group in groups]
    return float(correct[chosen].mean()), float(rewards[chosen].mean())


def rows_of_table(folder: Path, model: str, repetitions: int, shares: int) -> list[dict[str, Any]]:
    """Return the table's rows from the finished pieces."""
    pools = [load_pieces(folder, POOL_METHOD, rep, shares) for rep in range(repetitions)]
    kinds = np.array([result["kind"] for result in pools[0].values()])

    def row(name: str, resolved: ResolvedJob, per_prompt: np.ndarray, rewards: np.ndarray) -> dict[str, Any]:
        by_kind = {kind: float(per_prompt[kinds == kind].mean()) for kind in dict.fromkeys(kinds)}
        return {
            "method": name,
            "tokens": token_forwards(resolved.plan),
            "flops": prompt_flops(resolved) / one_image,
            "accuracy": per_prompt,
            "reward": float(rewards.mean()),
            "kinds": by_kind,
        }

    best_of_n = {size: resolve(job(_best_of(size), model, 0)) for size in (1, 2, 4, 8)}
    one_image = prompt_flops(best_of_n[1])
    rows = []
    for size, resolved in best_of_n.items():
        scores = np.array([[best_of(result, size) for result in pool.values()] for pool in pools])
        name = "raw" if size == 1 else f"best-of-{size}"
        rows.append(row(name, resolved, scores[:, :, 0].mean(axis=0), scores[:, :, 1]))
    ceiling = np.array([[float(any(r["correct"])) for r in pool.values()] for pool in pools]).mean(axis=0)
    rows.append(row(f"any of {POOL} right (a perfect judge)", best_of_n[POOL], ceiling, np.array([np.nan])))
    for method in SEARCHES:
        runs = [load_pieces(folder, method, rep, shares) for rep in range(repetitions)]
        correct = np.array([[float(r["correct"][0]) for r in run.values()] for run in runs]).mean(axis=0)
        rewards = np.array([[r["rewards"][0] for r in run.values()] for run in runs])
        rows.append(row(method.name, resolve(job(method, model, 0)), correct, rewards))
    return rows


def _best_of(size: int) -> Method:
    return Method(name=f"best-of-{size}", strategy={"name": "best-of-n", "n": size})


def best_of_curve(rows: Sequence[Mapping[str, Any]], cost: float) -> np.ndarray:
    """Return best-of-N's per-prompt accuracy at a cost between the measured N, linear in log2 cost."""
    points = [row for row in rows if row["method"] == "raw" or row["method"].startswith("best-of-")]
    position = float(np.clip(np.log2(cost), 0, np.log2(POOL)))
    logs = np.log2([row["flops"] for row in points])
    upper = int(np.searchsorted(logs, position))
    if logs[upper] == position:
        return np.asarray(points[upper]["accuracy"])
    weight = (position - logs[upper - 1]) / (logs[upper] - logs[upper - 1])
    return np.asarray((1 - weight) * points[upper - 1]["accuracy"] + weight * points[upper]["accuracy"])


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table."""
    kinds = list(rows[0]["kinds"])
    raw = rows[0]["accuracy"]
    head = [
        "method",
        "tokens",
        "FLOPs",
        "accuracy",
        "minus raw",
        "minus best-of-N at equal FLOPs",
        "reward",
        *kinds,
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        is_search = row["method"].startswith(("TTS", "resampling"))
        equal = paired_difference(row["accuracy"], best_of_curve(rows, row["flops"])) if is_search else None
        minus_raw: Estimate | None = paired_difference(row["accuracy"], raw) if row is not rows[0] else None
        cells = [
            row["method"],
            f"{row['tokens']:.2f}",
            f"{row['flops']:.2f}",
            str(estimate(row["accuracy"])),
            f"{minus_raw:+}" if minus_raw else "",
            f"{equal:+}" if equal else "",
            "" if np.isnan(row["reward"]) else f"{row['reward']:.2f}",
            *(f"{row['kinds'][kind]:.2f}" for kind in kinds),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table and write it with its numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--per-kind", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--shares", type=int, default=4, help="pieces that each method's prompts are cut into"
    )
    parser.add_argument("--work-dir", type=Path, default=Path("outputs/shapes-results"))
    options = parser.parse_args()
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
        for method in (POOL_METHOD, *SEARCHES)
        for share in range(options.shares)
    ]
    with get_context("spawn").Pool(options.processes) as workers:
        for number, _ in enumerate(workers.imap_unordered(run_piece, pieces), start=1):
            print(f"{number}/{len(pieces)} pieces", flush=True)
    rows = rows_of_table(folder, options.model, options.repetitions, options.shares)
    table = markdown(rows)
    print(f"{len(rows[0]['accuracy'])} prompts, {options.repetitions} repetitions\n{table}")
    (folder / "table.md").write_text(table + "\n")
    numbers = {
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "prompts": len(rows[0]["accuracy"]),
        "repetitions": options.repetitions,
        "rows": [
            {
                **row,
                "accuracy": float(np.mean(row["accuracy"])),
                "standard_error": estimate(row["accuracy"]).standard_error,
                "reward": None if np.isnan(row["reward"]) else row["reward"],
            }
            for row in rows
        ],
    }
    (folder / "results.json").write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
