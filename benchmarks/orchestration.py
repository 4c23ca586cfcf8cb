"""What orchestration costs: the same work in this process and through Ray, in one run.

    python -m benchmarks.orchestration --workers 1 4 --seconds 120 --out benchmarks/results/orchestration.json

The engines sleep as long as Infinity-2B would compute on an H200 (counted costs), and answer with bits,
features and images of the usual sizes; everything else is real: coordinator, selections, workers, the sink
and its parts. In this process one engine runs at a time and a decision holds it up; through Ray decisions
overlap with computing. Steady state is the time between the second micro-batch of the last worker to begin
and the last time at which all of them had work; what Ray takes to start is reported apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.diary import Diary, read_diaries
from benchmarks.machine import cpu_name
from benchmarks.sleeping_engine import SleepingEngineBuilder
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.load import load_config
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.job.simulation import SimulatedJob, simulated_job
from ttsvar_ray.simulation.run import seconds_per_prompt
from ttsvar_ray.types import Prompt

JOB = Path("jobs/infinity_2b.yaml")


def steady_stretch(diaries: list[Diary]) -> tuple[float, float]:
    """Return when every worker had work: from the second micro-batch of the last to begin."""
    start = max(float(diary.batches[1]["began"]) for diary in diaries)
    # The tail begins when the first segment of the last prompts is over: no worker can get new ones then.
    last_first_segment = max(
        batch["ended"] for diary in diaries for batch in diary.batches if batch["segment"] == 0
    )
    return start, min(last_first_segment, *(diary.ended for diary in diaries))


def steady(diaries: list[Diary], job: SimulatedJob) -> dict[str, float]:
    """Return how much of the steady stretch the engines computed, and its throughput per worker."""
    start, end = steady_stretch(diaries)
    asked = sum(diary.asked_between(start, end) for diary in diaries)
    each = {segment.index: segment.population for segment in job.plan.segments}
    total = sum(each.values())
    rows = sum(
        batch["rows"] for diary in diaries for batch in diary.batches if start <= batch["ended"] <= end
    )
    seconds = (end - start) * len(diaries)
    return {
        "seconds": end - start,
        "computing_share": asked / seconds,
        "overhead": 1.0 - asked / seconds,
        "prompts_per_second_and_worker": rows / total / seconds,
        "mean_rows": rows / max(1, sum(len(diary.batches) for diary in diaries)),
    }


def in_process(job: SimulatedJob, prompts: int, log: Path) -> dict[str, Any]:
    """Run the work with one engine in this process."""
    engine = builder(job, log)()
    before, started = cpu_seconds(), time.monotonic()
    texts = (Prompt(row=row, prompt_id=f"{row:x}", ordinal=0, text="") for row in range(prompts))
    outcomes = run_local(texts, plan=job.plan, engines=[engine], run_seed=0, settings=CoordinatorSettings())
    count = sum(1 for _ in outcomes)
    assert count == prompts
    return {
        "prompts": prompts,
        "wall_seconds": time.monotonic() - started,
        "cpu_seconds": cpu_seconds() - before,
        "steady": steady(read_diaries(log), job),
    }


def through_ray(job: SimulatedJob, prompts: int, workers: int, folder: Path) -> dict[str, Any]:
    """Run the work as a job on a Ray cluster of this machine."""
    from ttsvar_ray.cluster.job import run_job
    from ttsvar_ray.job.runnable import JobParts

    source = folder / "prompts.txt"
    source.write_text("".join(f"prompt number {row}\n" for row in range(prompts)), encoding="utf-8")
    config = JobConfig.model_validate(
        {
            "model": {"device": "cpu"},
            "prompts": {"path": str(source)},
            "output": {"path": str(folder / "out"), "rows_per_part": 16},
            # The engines sleep, so they may be more than there are cores.
            "cluster": {"workers": workers, "cpus_per_worker": 0, "address": "local"},
        }
    )
    log = folder / "log"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    # Ray makes its workers give way to every other process of a machine, which others may use.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    watch = CellWatch()
    started = time.monotonic()
    with watch:
        parts = JobParts(
            plan=job.plan,
            build_engine=builder(job, log),
            expect=lambda profile: job.workload,
        )
        summary = run_job(config, parts=parts)
    assert (summary.prompts, summary.failed) == (prompts, 0)
    diaries = read_diaries(log)
    assert len(diaries) == workers, f"expected {workers} diaries, got {len(diaries)}"
    state = steady(diaries, job)
    return {
        "workers": workers,
        "prompts": prompts,
        "wall_seconds": time.monotonic() - started,
        "until_first_batch_seconds": min(diary.began for diary in diaries) - started,
        "until_all_work_seconds": max(diary.began for diary in diaries) - started,
        "batches": sum(len(diary.batches) for diary in diaries),
        "replayed": sum(batch["replayed"] for diary in diaries for batch in diary.batches),
        "cell_cpu_seconds_a_prompt": watch.cpu_share(*steady_stretch(diaries))
        / (state["prompts_per_second_and_worker"] * workers),
        "notices": list(summary.notices),
        "steady": state,
    }


class CellWatch:
    """Looks at the CPU time of the cell's process now and then, from outside."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CellWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(2.0):
            for process in Path("/proc").iterdir():
                if process.name.isdecimal():
                    with contextlib.suppress(OSError):
                        self._look_at(process)

    def _look_at(self, process: Path) -> None:
        if not (process / "cmdline").read_bytes().startswith((b"ray::Cell", b"ray::cell-")):
            return
        if os.getpid() not in ancestors(int(process.name)):
            return
        fields = stat_fields(process)
        ticks = os.sysconf("SC_CLK_TCK")
        self._seen.append((time.monotonic(), (int(fields[11]) + int(fields[12])) / ticks))

    def cpu_share(self, start: float, end: float) -> float:
        """Return the CPU seconds in a second of a stretch; NaN where it was not looked at twice."""
        seen = [look for look in self._seen if start <= look[0] <= end]
        if len(seen) < 2:
            return float("nan")
        return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])


def ancestors(pid: int) -> set[int]:
    """Return the processes that a process descends from: others on this machine may run Ray, too."""
    found: set[int] = set()
    while pid > 1:
        pid = int(stat_fields(Path("/proc") / str(pid))[1])
        found.add(pid)
    return found


def stat_fields(process: Path) -> list[str]:
    """Return what follows the name in a process's `stat`."""
    return (process / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()


def builder(job: SimulatedJob, log: Path) -> SleepingEngineBuilder:
    """Return what builds the engines of a job."""
    return SleepingEngineBuilder(
        plan=job.plan,
        workload=job.workload,
        rows=job.settings.rows,
        image_bytes=job.settings.payload.image_bytes,
        bits_per_token=job.settings.payload.bits_per_token,
        log=log,
    )


def cpu_seconds() -> float:
    """Return the CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seconds", type=float, default=120.0, help="of computing, each run, about")
    parser.add_argument("--model", default="infinity-2b")
    parser.add_argument("--n", type=int, default=1, help="the N of the paper")
    parser.add_argument("--profile", default="h200")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    overrides = [
        f"model.name={options.model}",
        f"strategy.n={options.n}",
        f"simulation.profile={options.profile}",
    ]
    job = simulated_job(load_config(JOB, overrides, needs_files=False))
    each = seconds_per_prompt(job.plan, job.workload, rows=job.settings.rows)
    prompts = max(8, round(options.seconds / each))
    load = [os.getloadavg()]
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        local = in_process(job, prompts, Path(folder) / "local")
        tell("in process", local)
        for workers in options.workers:
            place = Path(folder) / f"ray-{workers}"
            place.mkdir()
            runs.append(through_ray(job, prompts * workers, workers, place))
            alone = local["steady"]["prompts_per_second_and_worker"]
            runs[-1]["throughput_over_in_process"] = (
                runs[-1]["steady"]["prompts_per_second_and_worker"] / alone
            )
            tell(f"{workers} workers", runs[-1])
    load.append(os.getloadavg())
    content = {
        "what": f"{options.model}, TTS-VAR N={options.n}, {job.workload.source}, {job.settings.rows} rows",
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_before_and_after": load},
        "in_process": local,
        "through_ray": runs,
    }
    print(json.dumps(content, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tell(what: str, run: dict[str, Any]) -> None:
    """Print one run in a line."""
    state = run["steady"]
    print(
        f"{what}: {state['computing_share']:.2%} of {state['seconds']:.0f} s computing, "
        f"{state['prompts_per_second_and_worker']:.3f} prompts/s and worker; "
        f"{run['wall_seconds']:.0f} s in all",
        flush=True,
    )


if __name__ == "__main__":
    main()
