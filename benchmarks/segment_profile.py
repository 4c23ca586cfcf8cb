"""What each segment of a plan costs an engine of this machine, measured: a workload for `simulate --profile`.

    python -m benchmarks.segment_profile jobs/shapes_demo.yaml --out profile.json

Every segment runs with several numbers of trajectories, and again with their parents replayed from bits; two
straight lines through the times are the profile. CPU times, because others may use the machine; one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.machine import cpu_name
from ttsvar_ray.config.load import load_config
from ttsvar_ray.coordination.messages import SegmentReport, ShardTask
from ttsvar_ray.coordination.settings import SegmentLoad, Workload
from ttsvar_ray.engine.engine import Engine
from ttsvar_ray.job.build import build_engine
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.job.workload import write_workload
from ttsvar_ray.results import PackedBits
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One micro-batch: its seconds, `replayed` with its parents rebuilt (NaN in the first segment)."""

    rows: int
    held: float
    replayed: float


def measure(
    engine: Engine,
    plan: Plan,
    texts: Sequence[str],
    *,
    rows: Sequence[int],
    repeats: int,
    clock: Callable[[], float] = time.process_time,
) -> list[list[Timing]]:
    """Return timings by segment.

    Args:
        engine: measured.
        plan: its plan.
        texts: prompts to draw, used in turn.
        rows: trajectories of a micro-batch, each number in turn.
        repeats: of each.
        clock: seconds, of whichever kind.
    """
    timings: list[list[Timing]] = []
    drawn = 0
    for segment in plan.segments:
        found = []
        for count in rows:
            for _ in range(repeats):
                parts = split(count, segment.population)
                prompts = [
                    Prompt(
                        row=drawn + index,
                        prompt_id=f"{drawn + index:x}",
                        ordinal=0,
                        text=texts[index % len(texts)],
                    )
                    for index in range(len(parts))
                ]
                drawn += len(parts)
                found.append(_time(engine, plan, segment.index, prompts, parts, clock))
        timings.append(found)
    return timings


def split(rows: int, population: int) -> list[int]:
    """Return how many trajectories each prompt has in a micro-batch of `rows`."""
    whole, rest = divmod(rows, population)
    return [population] * whole + ([rest] if rest else [])


def _time(
    engine: Engine,
    plan: Plan,
    segment_index: int,
    prompts: Sequence[Prompt],
    parts: Sequence[int],
    clock: Callable[[], float],
) -> Timing:
    """Time one segment of some prompts, with as many slots of each as `parts` says."""
    bits: list[dict[int, PackedBits]] = [dict.fromkeys(range(part), ()) for part in parts]

    def run(index: int, *, replay: bool) -> float:
        tasks = [
            ShardTask(
                prompt=prompt,
                attempt=1,
                segment_index=index,
                slots=tuple(range(part)),
                # Everybody survives, so that each has a parent of its own.
                parent_slots=tuple(range(part)) if index else (),
                parent_bits=dict(bits[number]) if replay else {},
            )
            for number, (prompt, part) in enumerate(zip(prompts, parts, strict=True))
        ]
        started = clock()
        reports = engine.run_segment(tasks)
        seconds = clock() - started
        for number, report in enumerate(reports):
            assert isinstance(report, SegmentReport), report
            if index < segment_index:
                for slot in report.slots:
                    bits[number][slot] += report.bits[slot]
        return seconds

    for index in range(segment_index):
        run(index, replay=False)
    held = run(segment_index, replay=False)
    replayed = float("nan")
    if segment_index:
        for prompt in prompts:
            engine.release(prompt.key, 1)
        replayed = run(segment_index, replay=True)
    for prompt in prompts:
        engine.release(prompt.key, 1)
    return Timing(rows=sum(parts), held=held, replayed=replayed)


def fit(plan: Plan, timings: Sequence[Sequence[Timing]], *, source: str) -> Workload:
    """Return the straight lines through the timings, by least squares of relative errors."""
    loads = []
    for segment, found in zip(plan.segments, timings, strict=True):
        fixed, each = fit_line([timing.rows for timing in found], [timing.held for timing in found])
        replay = 0.0
        if segment.index:
            extra = [max(0.0, timing.replayed - timing.held) / timing.rows for timing in found]
            replay = float(np.median(extra))
        scales = plan.scale_schedule[segment.first_scale : segment.last_scale + 1]
        loads.append(
            SegmentLoad(
                tokens=sum(height * width for height, width in scales),
                batch_seconds=fixed,
                row_seconds=each,
                replay_seconds=replay,
            )
        )
    return Workload(segments=tuple(loads), source=source)


def fit_line(rows: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Return (fixed, per row), both at least 0, with the least sum of squared relative errors."""
    x, y = np.asarray(rows, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    columns = np.stack([1 / y, x / y], axis=1)
    fixed, each = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0]
    if fixed < 0:
        return 0.0, float((x / y).sum() / np.square(x / y).sum())
    if each < 0:
        return float((1 / y).sum() / np.square(1 / y).sum()), 0.0
    return float(fixed), float(each)


def mean_error(workload: Workload, timings: Sequence[Sequence[Timing]]) -> float:
    """Return the mean relative error of the lines, over the segments' micro-batches with held parents."""
    errors = [
        abs(workload.seconds(index, timing.rows) / timing.held - 1)
        for index, found in enumerate(timings)
        for timing in found
    ]
    return float(np.mean(errors))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    config = load_config(options.job, options.settings, needs_files=False)
    job = resolve(config)
    plan, engine = job.plan, build_engine(job)
    texts = [f"a large red circle above a small blue square, number {index}" for index in range(16)]
    timings = measure(engine, plan, texts, rows=options.rows, repeats=options.repeats)
    source = (
        f"measured on one thread of {cpu_name()}: {config.model.name}, {plan.strategy} N={config.strategy.n}"
    )
    workload = fit(plan, timings, source=source)
    write_workload(options.out, workload)
    for index, load in enumerate(workload.segments):
        print(
            f"segment {index}: {1e3 * load.batch_seconds:.1f} ms + {1e3 * load.row_seconds:.2f} ms a row, "
            f"replay {1e3 * load.replay_seconds:.2f} ms a parent"
        )
    print(f"mean relative error of the lines: {mean_error(workload, timings):.1%}")


if __name__ == "__main__":
    main()
