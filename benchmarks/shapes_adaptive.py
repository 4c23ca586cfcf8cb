"""The adaptive table of docs/results.md: thresholds chosen on tuning prompts, measured on reporting prompts.

    python -m benchmarks.shapes_adaptive --prompts 120 --budget 1.5

Two pools of 8 complete trajectories a prompt, one of tuning and one of reporting prompts; thresholds are
chosen on the first alone. On the second, raw, best-of-k, one cut after scale 6 and the adaptive search are
replayed, exactly. The adaptive search and TTS-VAR also run themselves, on the same prompts with streams of
their own. Every prompt's outcome is a line in the work folder: the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.statistics import Estimate, estimate, paired_difference
from recipes.shapes.prompt_set import prompt_set
from ttsvar_ray.cli.calibrate import costs_of
from ttsvar_ray.config import JobConfig
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.costs import image_costs
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.resolved import ResolvedJob, resolve
from ttsvar_ray.results import PromptFailure
from ttsvar_ray.search.calibration import Pool, calibrate, replay
from ttsvar_ray.search.plan import Rounds
from ttsvar_ray.shapes.checker import check
from ttsvar_ray.types import Prompt

POOL = 8
SCALES = (4, 5, 6, 7, 8)
CUT = 6
PER_KIND = {"tuning": 20, "reporting": 30}
POOL_STRATEGY = {
    "name": "tts-var",
    "batch_schedule": [POOL] * 13,
    "selections": [{"scale": scale, "operator": "keep"} for scale in SCALES],
}


def job_of(strategy: Mapping[str, Any], seed: int) -> ResolvedJob:
    """Return a job that keeps all images."""
    return resolve(
        JobConfig.model_validate(
            {
                "model": {"name": "shapes", "device": "cpu"},
                "strategy": dict(strategy),
                "engine": {"micro_batch_rows": 32, "threads": 1},
                "output": {"keep": "all"},
                "seed": seed,
            }
        )
    )


def outcomes(
    path: Path, prompts_of: str, count: int, strategy: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    """Run a strategy on the first prompts of a shuffled set; return their outcomes by row."""
    captions = prompt_set(prompts_of, PER_KIND[prompts_of])
    order = list(range(len(captions)))
    random.Random(5).shuffle(order)
    chosen = order[:count]
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    missing = [row for row in chosen if row not in {one["row"] for one in done}]
    if missing:
        job = job_of(strategy, seed)
        ordinals = [sum(c.text == caption.text for c in captions[:i]) for i, caption in enumerate(captions)]
        prompts = [
            Prompt(row=row, prompt_id=captions[row].text, ordinal=ordinals[row], text=captions[row].text)
            for row in missing
        ]
        settings = CoordinatorSettings(spread=1, keep="all", live_rows=96)
        engines = [build_engine(job)]
        with path.open("a") as file:
            for outcome in run_local(
                prompts, plan=job.plan, engines=engines, run_seed=seed, settings=settings
            ):
                if isinstance(outcome, PromptFailure):
                    raise RuntimeError(f"{outcome.prompt.text}: {outcome.errors[-1]}")
                pictures = [Image.open(io.BytesIO(image.image.payload)) for image in outcome.images]
                pixels = [np.asarray(picture.convert("RGB")) for picture in pictures]
                line = {
                    "row": outcome.prompt.row,
                    "kind": captions[outcome.prompt.row].kind.value,
                    "rounds": outcome.rounds,
                    "trajectories": outcome.trajectories,
                    "slots": [image.lineage[-1] for image in outcome.images],
                    "rewards": [image.reward for image in outcome.images],
                    "history": [image.reward_history for image in outcome.images],
                    "correct": [bool(check(each, outcome.prompt.text).correct) for each in pixels],
                }
                file.write(json.dumps(line) + "\n")
                file.flush()
                done.append(line)
    wanted = set(chosen)
    return sorted((one for one in done if one["row"] in wanted), key=lambda one: one["row"])


def pool_of(lines: Sequence[Mapping[str, Any]]) -> Pool:
    """Return the pool of these outcomes, trajectories in the order of their slots."""
    orders = [np.argsort(line["slots"]) for line in lines]
    return Pool(
        scales=(*SCALES, 12),
        rewards=np.array([np.array(line["history"])[o] for line, o in zip(lines, orders, strict=True)]),
        quality=np.array(
            [np.array(line["correct"], dtype=float)[o] for line, o in zip(lines, orders, strict=True)]
        ),
    )


def ran(lines: Sequence[Mapping[str, Any]], strategy: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return what each prompt of a search has cost, in images, and whether its best image is right."""
    job = job_of(strategy, 0)
    networks = job_networks(job.config, job.description, job.plan, on_gpu=False)
    text, *each = image_costs(job.plan, networks, selector_decode="full")
    cost = text + np.array([line["trajectories"] for line in lines]) @ np.array(each)
    return cost, np.array([float(line["correct"][0]) for line in lines])


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=120, help="of each set")
    parser.add_argument("--budget", type=float, default=1.5)
    parser.add_argument("--work-dir", type=Path, default=Path("outputs/shapes-adaptive-results"))
    options = parser.parse_args()
    folder, count = options.work_dir, options.prompts
    folder.mkdir(parents=True, exist_ok=True)
    tuning = pool_of(outcomes(folder / "tuning.jsonl", "tuning", count, POOL_STRATEGY, 11))
    pool = pool_of(outcomes(folder / "reporting.jsonl", "reporting", count, POOL_STRATEGY, 2011))
    costs = costs_of(job_of(POOL_STRATEGY, 0))
    found = calibrate(tuning, budget=options.budget, max_rounds=POOL, image_costs=costs)
    assert found is not None
    rounds = found.rounds
    adaptive = {
        "name": "adaptive",
        "max_rounds": POOL,
        "reject_below": {scale: round(least, 6) for scale, least in rounds.reject_below},
        "stop_at": round(float(rounds.stop_at or 0), 6),
    }
    published = {"name": "tts-var", "plan": "model", "n": 1}
    rows: list[tuple[str, np.ndarray, np.ndarray]] = []
    for size in (1, 2, 4, 8):
        one = replay(pool, dataclasses.replace(Rounds(), growth=(1,) * size), costs)
        rows.append(("raw" if size == 1 else f"best-of-{size}", one.cost, one.quality))
    best_of_8 = rows[-1][2]
    text, early, late = costs((CUT,))
    first = np.argmax(pool.rewards[:, :, SCALES.index(CUT)], axis=1)
    cut = np.take_along_axis(pool.quality, first[:, None], axis=1)[:, 0]
    rows.append((f"8, one cut to 1 after scale {CUT}", np.full(count, text + POOL * early + late), cut))
    last = np.argmax(pool.rewards[:, :, -2:].mean(axis=2), axis=1)
    mean = np.take_along_axis(pool.quality, last[:, None], axis=1)[:, 0]
    paid = text + POOL * sum(costs((SCALES[-1],))[1:])
    rows.append(("best-of-8 by the mean of scales 8 and 12", np.full(count, paid), mean))
    lines = outcomes(folder / "ttsvar.jsonl", "reporting", count, published, 3011)
    rows.append(("TTS-VAR, model's plan, N=1", *ran(lines, published)))
    one = replay(pool, rounds, costs)
    rows.append(("adaptive, replayed", one.cost, one.quality))
    lines = outcomes(folder / "adaptive.jsonl", "reporting", count, adaptive, 4011)
    rows.append(("adaptive, run", *ran(lines, adaptive)))

    print(f"{count} reporting prompts; chosen on {len(tuning.final)} tuning prompts: {adaptive}")
    print("| method | cost in images | accuracy | minus best-of-8 |\n| --- | --- | --- | --- |")
    for name, cost, quality in rows:
        minus: Estimate = paired_difference(quality, best_of_8)
        print(f"| {name} | {estimate(cost)} | {estimate(quality)} | {minus:+} |")


if __name__ == "__main__":
    main()
