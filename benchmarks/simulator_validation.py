"""The simulator against reality: the built-in model on 1, 2 and 4 Ray workers, and simulated.

    python -m benchmarks.simulator_validation --out benchmarks/results/simulator_validation.json

For each number of workers the engine of this machine is first measured, segment by segment, with as many
processes at a time (`benchmarks.segment_profile`): they share cores and caches, which GPUs do not. Then the
workers run prompts on Ray, and the same is simulated with that profile; compared is the time from the first
micro-batch to the end of the last. Workers begin together; starting Ray is left out.

The first error is that of the whole prediction. The second is the simulator's alone: there, all workers are
slower or faster than the profile by what the run's micro-batches really took, so that a machine which has
become slower meanwhile is not the simulator's fault.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.diary import read_diaries
from benchmarks.machine import cpu_name
from benchmarks.recording_engine import START_TIMEOUT_S, RecordingEngineBuilder
from benchmarks.segment_profile import Timing, fit, mean_error, measure
from ttsvar_ray.cluster.job import run_job
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.load import load_config
from ttsvar_ray.coordination.settings import CoordinatorSettings, Workload
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.plan import rows_of
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.job.runnable import JobParts
from ttsvar_ray.job.workload import write_workload
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.simulation.result import SimulationResult
from ttsvar_ray.simulation.run import simulate
from ttsvar_ray.simulation.settings import CoordinatorCosts, SimulationSettings

JOB = Path("jobs/shapes_demo.yaml")
MESSAGE_SECONDS = 2e-3
"""Of the cell's process, to receive and to send: Ray's part of a decision."""


def prompt_texts() -> list[str]:
    """Return the prompts of the demonstration."""
    lines = Path("jobs/prompts/shapes_demo.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def real_run(
    plan: Plan, workload: Workload, settings: list[str], *, prompts: int, workers: int, folder: Path
) -> dict[str, Any]:
    """Run prompts on Ray workers of this machine."""
    texts = prompt_texts()
    source = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": texts[row % len(texts)]}) for row in range(prompts)]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = load_config(
        JOB,
        [
            *settings,
            f"prompts.path={source}",
            f"output.path={folder / 'out'}",
            f"cluster.workers={workers}",
            "cluster.cpus_per_worker=0",
            "cluster.address=local",
        ],
    )
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    # Ray makes its workers give way to every other process of a machine, which others may use.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    log = folder / "log"
    builder = RecordingEngineBuilder(
        build_engine=partial(build_engine, resolve(config)), log=log, workers=workers
    )
    load = os.getloadavg()[0]
    summary = run_job(config, parts=JobParts(plan=plan, build_engine=builder))
    assert (summary.prompts, summary.failed) == (prompts, 0), summary
    diaries = read_diaries(log)
    assert len(diaries) == workers, f"expected {workers} diaries, got {len(diaries)}: {summary.notices}"
    batches = [batch for diary in diaries for batch in diary.batches]
    makespan = max(diary.ended for diary in diaries) - min(diary.began for diary in diaries)
    wall = sum(batch["ended"] - batch["began"] for batch in batches)
    predicted = sum(workload.seconds(batch["segment"], batch["rows"], batch["replayed"]) for batch in batches)
    return {
        "makespan_seconds": makespan,
        "prompts_per_second": prompts / makespan,
        "batches": len(batches),
        "computing_wall_seconds": wall,
        "computing_cpu_seconds": sum(batch["asked"] for batch in batches),
        "slowdown": wall / predicted,
        "computing_share": wall / (workers * makespan),
        "load_before": load,
    }


def simulated_run(
    plan: Plan,
    workload: Workload,
    config: JobConfig,
    *,
    prompts: int,
    workers: int,
    slowdown: float,
    costs: CoordinatorCosts,
) -> SimulationResult:
    """Simulate the same."""
    slowed = tuple(
        replace(
            load,
            batch_seconds=load.batch_seconds * slowdown,
            row_seconds=load.row_seconds * slowdown,
            replay_seconds=load.replay_seconds * slowdown,
        )
        for load in workload.segments
    )
    return simulate(
        plan=plan,
        workload=replace(workload, segments=slowed),
        settings=SimulationSettings(
            gpus=workers,
            prompts=prompts,
            rows=rows_of(config, plan),
            noise=0.05,
            start_seconds=0.0,
            start_spread_seconds=0.0,
            rows_per_part=config.output.rows_per_part,
            coordinator=costs,
            selections="real",
        ),
        coordinator=CoordinatorSettings(),
        stopwatch=time.process_time,
    )


def coordinator_costs(plan: Plan, workload: Workload, config: JobConfig) -> CoordinatorCosts:
    """Measure the coordinator on this machine: its real decisions and selections in a short simulated run."""
    nothing = CoordinatorCosts(message_seconds=0, shard_seconds=0, cluster_seconds=0, resample_seconds=0)
    result = simulated_run(plan, workload, config, prompts=32, workers=2, slowdown=1.0, costs=nothing)
    return CoordinatorCosts(
        message_seconds=MESSAGE_SECONDS + result.measured_decision_seconds,
        shard_seconds=0,
        cluster_seconds=0,
        resample_seconds=0,
    )


def profile(options: argparse.Namespace, workers: int) -> tuple[Workload, float]:
    """Measure the engine in several processes at a time; return the profile and the error of its lines."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        barrier = manager.Barrier(workers)
        with context.Pool(workers) as pool:
            found = pool.starmap(_measure, [(options.settings, options.profile_repeats, barrier)] * workers)
    plan = resolve(load_config(JOB, options.settings, needs_files=False)).plan
    timings = [[timing for each in found for timing in each[segment.index]] for segment in plan.segments]
    source = f"measured, {workers} at a time, one thread each, on {cpu_name()}: built-in model"
    workload = fit(plan, timings, source=source)
    return workload, mean_error(workload, timings)


def _measure(settings: list[str], repeats: int, barrier: Any) -> list[list[Timing]]:
    config = load_config(JOB, settings, needs_files=False)
    job = resolve(config)
    plan, engine = job.plan, build_engine(job)
    most = max(rows_of(config, plan))
    rows = sorted({max(1, most // part) for part in (1, 2, 4, 8)})
    barrier.wait(timeout=START_TIMEOUT_S)
    return measure(engine, plan, prompt_texts(), rows=rows, repeats=repeats, clock=time.monotonic)


def compare(options: argparse.Namespace, workers: int) -> dict[str, Any]:
    """Run one number of workers several times, in reality and simulated."""
    config = load_config(JOB, options.settings, needs_files=False)
    plan = resolve(config).plan
    workload, error_of_lines = profile(options, workers)
    if options.profile_out is not None and workers == 1:
        write_workload(options.profile_out, workload)
    costs = coordinator_costs(plan, workload, config)
    prompts = options.prompts_per_worker * workers
    runs = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            run = real_run(
                plan, workload, options.settings, prompts=prompts, workers=workers, folder=Path(folder)
            )
        runs.append(run)
    real = statistics.median(run["makespan_seconds"] for run in runs)
    give = partial(simulated_run, plan, workload, config, prompts=prompts, workers=workers, costs=costs)
    predicted = give(slowdown=1.0)
    # Each run has its own slowdown.
    errors = [give(slowdown=run["slowdown"]).makespan_seconds / run["makespan_seconds"] - 1 for run in runs]
    found = {
        "workers": workers,
        "prompts": prompts,
        "profile": [dataclasses.asdict(load) for load in workload.segments],
        "mean_error_of_the_lines": error_of_lines,
        "decision_seconds": costs.message_seconds,
        "real": runs,
        "real_makespan_seconds": real,
        "predicted_makespan_seconds": predicted.makespan_seconds,
        "prediction_error": predicted.makespan_seconds / real - 1,
        "predicted_computing_share": predicted.utilisation,
        "simulator_errors": errors,
        "simulator_error": statistics.median(errors),
    }
    print(
        f"{workers} workers, {prompts} prompts: real {real:.1f} s (of {len(runs)} runs), predicted "
        f"{predicted.makespan_seconds:.1f} s ({found['prediction_error']:+.1%}); the simulator alone "
        f"{found['simulator_error']:+.1%}",
        flush=True,
    )
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--prompts-per-worker", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile-repeats", type=int, default=3)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--profile-out", type=Path, help="also write the measured profile here")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    content = {
        "what": f"{JOB.name}, one thread a worker",
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "comparisons": [compare(options, workers) for workers in options.workers],
    }
    if options.out is not None:
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
