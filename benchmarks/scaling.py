"""Utilisation of many GPUs by simulation: 8, 64, 256 and 1,024 of them, with noise and losses.

    python -m benchmarks.scaling --out benchmarks/results/scaling.json --plot docs/images/scaling.png

Infinity-2B at 1024x1024, TTS-VAR with N=1, counted costs on an H200: the job of jobs/infinity_2b.yaml. Each
run has prompts for `--hours` of work; its start and its tail are part of it. `--gpus 1024 --prompts 1000000`
runs one size with a given number of prompts; results are added to those that the file holds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ttsvar_ray.cli.simulate import Follower
from ttsvar_ray.cli.simulation_report import result_lines
from ttsvar_ray.config.load import load_config
from ttsvar_ray.job.simulation import SimulatedJob, simulated_job
from ttsvar_ray.simulation.run import seconds_per_prompt, simulate

JOB = Path("jobs/infinity_2b.yaml")
NOISE = 0.05
FAILURES_PER_GPU_HOUR = 0.01
AIMS = {64: 0.95, 1024: 0.90}


def read_job(model: str, n: int, profile: str, settings: list[str]) -> SimulatedJob:
    """Return the job that is simulated."""
    overrides = [f"model.name={model}", f"strategy.n={n}", f"simulation.profile={profile}", *settings]
    return simulated_job(load_config(JOB, overrides, needs_files=False))


def run(job: SimulatedJob, gpus: int, prompts: int, workers_per_cell: int | None) -> dict[str, Any]:
    """Simulate one size; return its result as JSON, with the timeline."""
    settings = replace(
        job.settings,
        gpus=gpus,
        prompts=prompts,
        workers_per_cell=workers_per_cell or job.settings.workers_per_cell,
        noise=NOISE,
        failures_per_gpu_hour=FAILURES_PER_GPU_HOUR,
    )
    started = time.process_time()
    result = simulate(
        plan=job.plan,
        workload=job.workload,
        settings=settings,
        coordinator=job.coordinator,
        progress=Follower(prompts, wall_limit=None, say=lambda line: print(line, flush=True)),
        stopwatch=time.process_time,
    )
    print("\n".join(result_lines(result)), flush=True)
    return {**result.to_json(), "simulated_in_cpu_seconds": time.process_time() - started}


def summary(results: dict[str, dict[str, Any]]) -> str:
    """Return all sizes as a Markdown table."""
    lines = [
        "| GPUs | cells | prompts | simulated | prompts/s | of ideal | computing | useful | steady | aim |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for gpus, result in sorted(results.items(), key=lambda item: int(item[0])):
        aim = AIMS.get(int(gpus))
        met = (
            "" if aim is None else f"{aim:.0%}: {'met' if result['goodput_utilisation'] >= aim else 'missed'}"
        )
        cells = -(-int(gpus) // result["settings"]["workers_per_cell"])
        minutes = result["makespan_seconds"] / 60
        lines.append(
            f"| {int(gpus):,} | {cells} | {result['prompts']:,} | {minutes:.0f} min | "
            f"{result['prompts_per_second']:.1f} | "
            f"{result['prompts_per_second'] / result['ideal_prompts_per_second']:.1%} | "
            f"{result['utilisation']:.2%} | {result['goodput_utilisation']:.2%} | "
            f"{result['steady_utilisation']:.2%} | {met} |"
        )
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw where the GPU time went, size by size; computing is left out, because it dwarfs the rest."""
    from matplotlib.figure import Figure

    sizes = sorted(results, key=int)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    reasons = [reason for reason in results[sizes[0]]["seconds"] if reason != "useful"]
    bottom = [0.0] * len(sizes)
    labels = [f"{int(size):,} GPUs\n{results[size]['makespan_seconds'] / 60:.0f} min" for size in sizes]
    for reason in reasons:
        shares = [
            100 * abs(results[size]["seconds"][reason]) / (int(size) * results[size]["makespan_seconds"])
            for size in sizes
        ]
        axes.bar(labels, shares, bottom=bottom, label=reason, width=0.6)
        bottom = [below + share for below, share in zip(bottom, shares, strict=True)]
    for index, size in enumerate(sizes):
        axes.annotate(
            f"{results[size]['goodput_utilisation']:.1%} useful",
            (index, bottom[index]),
            textcoords="offset points",
            xytext=(0, 4),
            ha="center",
        )
    axes.set(ylabel="% of all GPU time", title="What is not useful computing, by reason")
    axes.margins(y=0.15)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 256, 1024])
    parser.add_argument("--hours", type=float, default=1.0, help="simulated, about")
    parser.add_argument("--prompts", type=int, help="of each run, in place of --hours")
    parser.add_argument("--model", default="infinity-2b")
    parser.add_argument("--n", type=int, default=1, help="the N of the paper")
    parser.add_argument("--profile", default="h200")
    parser.add_argument("--workers-per-cell", type=int)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    job = read_job(options.model, options.n, options.profile, options.settings)
    results: dict[str, dict[str, Any]] = {}
    if options.out is not None and options.out.exists():
        results = json.loads(options.out.read_text(encoding="utf-8"))["results"]
    for gpus in options.gpus:
        each = seconds_per_prompt(job.plan, job.workload, rows=job.settings.rows)
        prompts = options.prompts or round(gpus * 3600 * options.hours / each)
        print(f"{gpus:,} GPUs, {prompts:,} prompts", flush=True)
        results[str(gpus)] = run(job, gpus, prompts, options.workers_per_cell)
        if options.out is not None:
            hardware = {"simulated_on": platform.processor() or platform.machine(), "cores": os.cpu_count()}
            content = {"costs": job.workload.source, "hardware": hardware, "results": results}
            options.out.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(summary(results))
    if options.plot is not None:
        draw(results, options.plot)


if __name__ == "__main__":
    main()
