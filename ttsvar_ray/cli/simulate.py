"""`ttsvar-ray simulate`: a job on many GPUs, without any."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import errors_for_people
from ttsvar_ray.cli.show import duration

if TYPE_CHECKING:
    from ttsvar_ray.coordination.settings import CoordinatorSettings
    from ttsvar_ray.job.simulation import SimulatedJob
    from ttsvar_ray.simulation import SimulationResult, SimulationSettings

ESTIMATE_AFTER_S = 5.0
REPORT_EVERY_S = 30.0


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
    settings: options.Settings = None,
    debug: options.Debug = False,
) -> None:
    """Simulate a run on many GPUs with the real coordinator and a cost model; no GPU, no weights.

    Device, noise, faults and variants are the section `simulation` of the job. Prints throughput,
    utilisation, why workers were idle, latency, bytes moved and what losses cost.
    """
    with errors_for_people(debug=debug):
        from ttsvar_ray.cli.simulation_report import comparison_lines, result_lines
        from ttsvar_ray.config import load_config
        from ttsvar_ray.job.simulation import simulated_job
        from ttsvar_ray.simulation.settings import variants

        if plot is not None:
            from ttsvar_ray.cli.simulation_plot import require_matplotlib

            require_matplotlib()
        flags = {"simulation.gpus": gpus, "simulation.prompts": prompts}
        config = load_config(job, options.overrides(flags, settings), needs_files=False)
        simulated = simulated_job(config)
        typer.echo(f"costs: {simulated.workload.source}", err=True)
        results: dict[str, SimulationResult] = {}
        if config.simulation.compare:
            for variant in variants(simulated.settings, simulated.coordinator):
                typer.echo(f"{variant.name} ...", err=True)
                results[variant.name] = _run(simulated, variant.settings, variant.coordinator)
            first = next(iter(results.values()))
            lines = [*result_lines(first), "", *comparison_lines(results)]
        else:
            first = _run(simulated, simulated.settings, simulated.coordinator)
            lines = result_lines(first)
        typer.echo("\n".join(lines))
        if json_path is not None:
            _write_json(json_path, first, results)
        if plot is not None:
            from ttsvar_ray.cli.simulation_plot import draw

            draw(first, plot)


def _run(
    simulated: SimulatedJob, settings: SimulationSettings, coordinator: CoordinatorSettings
) -> SimulationResult:
    from ttsvar_ray.simulation import simulate as run_simulation

    return run_simulation(
        plan=simulated.plan,
        workload=simulated.workload,
        settings=settings,
        coordinator=coordinator,
        progress=progress_lines(settings.prompts),
        stopwatch=time.perf_counter,
    )


def progress_lines(
    prompts: int, *, now: Callable[[], float] = time.monotonic, say: Callable[[str], None] | None = None
) -> Callable[[int], None]:
    """Return what tells people how long a simulation will take: after a few seconds, then now and then.

    Args:
        prompts: of the whole run.
        now: seconds of a steady clock.
        say: prints a line; None is standard error.
    """
    tell = say if say is not None else lambda line: typer.echo(line, err=True)
    started = now()
    due = started + ESTIMATE_AFTER_S

    def progress(finished: int) -> None:
        nonlocal due
        if finished % 64 or finished == prompts:
            return
        time_now = now()
        if time_now < due:
            return
        due = time_now + REPORT_EVERY_S
        each = (time_now - started) / finished
        left = (prompts - finished) * each
        tell(
            f"{finished:,} of {prompts:,} prompts simulated, {1000 * each:.2f} s for 1,000; "
            f"about {duration(left)} left"
        )

    return progress


def _write_json(path: Path, first: SimulationResult, results: dict[str, SimulationResult]) -> None:
    import json

    content: dict[str, Any] = first.to_json()
    if results:
        content["variants"] = {name: result.to_json(timeline=False) for name, result in results.items()}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
