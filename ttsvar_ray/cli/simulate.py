"""`ttsvar-ray simulate`: a job on many GPUs, without any."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import ExitCode
from ttsvar_ray.cli.show import bytes_text, duration

if TYPE_CHECKING:
    from ttsvar_ray.coordination.settings import CoordinatorSettings
    from ttsvar_ray.job.simulation import SimulatedJob
    from ttsvar_ray.simulation.result import SimulationResult
    from ttsvar_ray.simulation.settings import SimulationSettings

ESTIMATE_AFTER_S = 3.0
REPORT_EVERY_S = 10.0
WALL_LIMIT_S = 15.0
"""A simulation that nobody asked to be whole answers after this at the latest."""

STEADY_PROMPTS = 1500
STEADY_PROMPTS_PER_GPU = 24
"""A run of twice as many prompts, or twice as many a GPU, is extrapolated from that many."""


def simulate(
    job: options.Job = None,
    gpus: Annotated[int | None, typer.Option("--gpus", help="Workers, one GPU each.", metavar="GPUS")] = None,
    prompts: Annotated[
        int | None, typer.Option("--prompts", help="Prompts of the whole run.", metavar="PROMPTS")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file.", metavar="FILE")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw where the time went (needs matplotlib).", metavar="FILE.png"),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Simulate every prompt, however long that takes; no extrapolation."),
    ] = False,
    settings: options.Settings = None,
) -> None:
    """Simulate a run on many GPUs with the real coordinator and a cost model; no GPU, no weights.

    Device, noise, faults and variants are the section `simulation` of the job. Prints throughput,
    utilisation, why workers were idle, latency, bytes moved and what losses cost. Of a long run a part is
    simulated, long enough to be steady, and the whole is extrapolated from it. Ctrl-C prints what is known.

    Example: ttsvar-ray simulate jobs/infinity_2b.yaml --gpus 8 --prompts 200000
    """
    from ttsvar_ray.cli.simulation_report import comparison_lines, draw, require_matplotlib, result_lines
    from ttsvar_ray.config.load import load_config
    from ttsvar_ray.job.resolved import plan_note, resolve
    from ttsvar_ray.job.simulation import simulated_job
    from ttsvar_ray.simulation.settings import variants

    if plot is not None:
        options.file_to_write(plot, "--plot", picture=True)
        require_matplotlib()
    flags = {"simulation.gpus": gpus, "simulation.prompts": prompts}
    config = load_config(job, options.overrides(flags, settings), needs_files=False)
    simulated = simulated_job(config)
    typer.echo(f"costs: {simulated.workload.source}", err=True)
    if note := plan_note(resolve(config)):
        typer.echo(f"note: {note}", err=True)
    asked = simulated.settings.prompts
    part = asked if whole or config.simulation.compare else part_of(asked, gpus=simulated.settings.gpus)
    if part < asked:
        smaller = dataclasses.replace(simulated.settings, prompts=part)
        simulated = dataclasses.replace(simulated, settings=smaller)
    follower = Follower(asked, wall_limit=None if whole or config.simulation.compare else WALL_LIMIT_S)
    results: dict[str, SimulationResult] = {}
    if config.simulation.compare:
        for variant in variants(simulated.settings, simulated.coordinator):
            typer.echo(f"{variant.name} ...", err=True)
            results[variant.name] = _run(simulated, variant.settings, variant.coordinator)
        first = next(iter(results.values()))
        lines = [*result_lines(first), "", *comparison_lines(results)]
    else:
        try:
            first = _run(simulated, simulated.settings, simulated.coordinator, follower)
        except (KeyboardInterrupt, EnoughError) as end:
            words = "stopped" if isinstance(end, KeyboardInterrupt) else "cut short (--whole goes on)"
            typer.echo("\n".join(follower.known(words)))
            if isinstance(end, KeyboardInterrupt):
                raise typer.Exit(ExitCode.INTERRUPTED) from None
            return
        lines = result_lines(first)
        if part < asked:
            lines = [*_extrapolation_lines(first, asked), "", "the part that was simulated", *lines]
    typer.echo("\n".join(lines))
    if json_path is not None:
        _write_json(json_path, first, results, asked=asked)
    if plot is not None:
        draw(first, plot)


def _run(
    simulated: SimulatedJob,
    settings: SimulationSettings,
    coordinator: CoordinatorSettings,
    follower: Follower | None = None,
) -> SimulationResult:
    from ttsvar_ray.simulation.run import simulate as run_simulation

    return run_simulation(
        plan=simulated.plan,
        workload=simulated.workload,
        settings=settings,
        coordinator=coordinator,
        progress=follower or Follower(settings.prompts, wall_limit=None),
        stopwatch=time.perf_counter,
    )


class EnoughError(Exception):
    """A simulation has taken its time; what it showed is known."""


class Follower:
    """Watches a simulation: says how far it is, ends it in time, and knows what it showed until then.

    Args:
        prompts: of the whole run that somebody asked about.
        wall_limit: seconds of this machine's clock after which it is ended; None never ends it.
        now: seconds of a steady clock.
        say: prints a line; None is standard error.
    """

    def __init__(
        self,
        prompts: int,
        *,
        wall_limit: float | None,
        now: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._prompts = prompts
        self._wall_limit = wall_limit
        self._now = now
        self._say = say if say is not None else lambda line: typer.echo(line, err=True)
        self._started = now()
        self._due = self._started + ESTIMATE_AFTER_S
        self._seen: list[tuple[int, float]] = []

    def __call__(self, finished: int, seconds: float) -> None:
        """Take in how many prompts are finished at a simulated time.

        Raises:
            EnoughError: the time is over.
        """
        if finished % 64:
            return
        self._seen.append((finished, seconds))
        time_now = self._now()
        if self._wall_limit is not None and time_now - self._started > self._wall_limit:
            raise EnoughError
        if time_now >= self._due:
            self._due = time_now + REPORT_EVERY_S
            each = (time_now - self._started) / finished
            self._say(f"{finished:,} prompts simulated, {1000 * each:.2f} s for 1,000 ...")

    @property
    def rate(self) -> float | None:
        """Prompts a second over the later half of what was seen; None where that is too little."""
        if len(self._seen) < 4:
            return None
        (early, since), (late, until) = self._seen[len(self._seen) // 2], self._seen[-1]
        return (late - early) / (until - since) if until > since else None

    def known(self, how: str) -> list[str]:
        """Return what is known, as lines."""
        if self.rate is None:
            return [f"{how} before anything was steady"]
        finished, seconds = self._seen[-1]
        whole = seconds + max(0, self._prompts - finished) / self.rate
        return [
            f"{how} after {finished:,} prompts, {duration(seconds)} of simulated time",
            f"{self.rate:.4g} prompts/s in the later half: {self._prompts:,} prompts take about "
            + duration(whole),
        ]


def part_of(prompts: int, *, gpus: int) -> int:
    """Return how many prompts are simulated of a run: all, or enough of them to be steady for long."""
    part = max(STEADY_PROMPTS, STEADY_PROMPTS_PER_GPU * gpus)
    return prompts if prompts < 2 * part else part


def _extrapolated_seconds(result: SimulationResult, prompts: int) -> float:
    """Return how long a run of more prompts takes: what was simulated, and the others at the steady rate."""
    return result.makespan_seconds + (prompts - result.prompts) / _steady_rate(result)


def _steady_rate(result: SimulationResult) -> float:
    rate = result.steady_prompts_per_second
    # NaN of a run that is over before all workers are up.
    return rate if rate > 0 else result.prompts_per_second


def _extrapolation_lines(result: SimulationResult, prompts: int) -> list[str]:
    """Return the whole run as lines: its start and tail as simulated, the rest at the steady rate."""
    rate, seconds = _steady_rate(result), _extrapolated_seconds(result, prompts)
    images = result.images * prompts / result.prompts
    written = images * result.settings.payload.image_bytes
    return [
        f"{prompts:,} prompts on {result.settings.gpus:,} GPUs: about {duration(seconds)}",
        f"extrapolated: {result.prompts:,} were simulated, the others go on at their {rate:.4g} prompts/s",
        f"images: {images:,.0f}, about {bytes_text(written)}",
    ]


def _write_json(
    path: Path, first: SimulationResult, results: dict[str, SimulationResult], *, asked: int
) -> None:
    import json

    content: dict[str, Any] = first.to_json()
    if asked > first.prompts:
        content["extrapolated"] = {"prompts": asked, "seconds": _extrapolated_seconds(first, asked)}
    if results:
        content["variants"] = {name: result.to_json(timeline=False) for name, result in results.items()}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
