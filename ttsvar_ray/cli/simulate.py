"""`ttsvar-ray simulate`: a job on many GPUs, without any."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    gpus: Annotated[int, typer.Option("--gpus", help="Workers, one GPU each.", min=1)] = 64,
    prompts: Annotated[int, typer.Option("--prompts", help="Prompts of the whole run.", min=1)] = 10_000,
    profile: Annotated[
        str,
        typer.Option(
            "--profile", help="Device (h200, a100-80g, ..., or a file), or a measured workload's file."
        ),
    ] = "h200",
    model: options.Model = None,
    strategy: options.Strategy = None,
    n: options.N = None,
    workers_per_cell: Annotated[
        int | None,
        typer.Option("--workers-per-cell", help="Workers of one coordinator; as in the job.", min=1),
    ] = None,
    noise: Annotated[
        float, typer.Option("--noise", help="Relative deviation of a micro-batch's time.", min=0)
    ] = 0.05,
    failures_per_gpu_hour: Annotated[
        float, typer.Option("--failures-per-gpu-hour", help="Losses of one worker.", min=0)
    ] = 0.0,
    failures_per_node_hour: Annotated[
        float, typer.Option("--failures-per-node-hour", help="Losses of a whole node.", min=0)
    ] = 0.0,
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", min=1)] = 8,
    stragglers: Annotated[
        float, typer.Option("--stragglers", help="Share of workers that are slow.", min=0, max=1)
    ] = 0.0,
    straggler_factor: Annotated[
        float, typer.Option("--straggler-factor", help="How many times longer these take.", min=1)
    ] = 2.0,
    restart_seconds: Annotated[
        float, typer.Option("--restart-seconds", help="Until a lost worker is replaced.", min=0)
    ] = 60.0,
    start_seconds: Annotated[
        float, typer.Option("--start-seconds", help="Until the first worker is ready.", min=0)
    ] = 30.0,
    start_spread_seconds: Annotated[
        float, typer.Option("--start-spread-seconds", help="Until the last one is, after that.", min=0)
    ] = 30.0,
    writer_gb_per_second: Annotated[
        float | None,
        typer.Option("--writer-gb-per-second", help="What the writer of parts sustains; default: any."),
    ] = None,
    selections: Annotated[
        str, typer.Option("--selections", help='"cheap" draws random ancestors, "real" runs the search\'s.')
    ] = "cheap",
    seed: Annotated[int, typer.Option("--seed", help="Seed of noise and faults.")] = 0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also run variants: noise, losses, stragglers, spread, cells.")
    ] = False,
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

    Prints throughput, utilisation, why workers were idle, latency, bytes moved and what losses cost.
    """
    with errors_for_people(debug=debug):
        from ttsvar_ray.cli.simulation_report import comparison_lines, result_lines
        from ttsvar_ray.config import load_config
        from ttsvar_ray.errors import ConfigurationError
        from ttsvar_ray.job.simulation import simulated_job
        from ttsvar_ray.simulation import SimulationSettings

        if plot is not None:
            from ttsvar_ray.cli.simulation_plot import require_matplotlib

            require_matplotlib()
        if writer_gb_per_second is not None and not writer_gb_per_second > 0:
            raise ConfigurationError(
                f"--writer-gb-per-second: expected more than 0, got {writer_gb_per_second}"
            )
        flags = {"model.name": model, "strategy.name": strategy, "strategy.n": n}
        config = load_config(job, options.overrides(flags, settings), needs_files=False)
        simulated = simulated_job(config, profile)
        wanted = SimulationSettings(
            gpus=gpus,
            prompts=prompts,
            rows=simulated.rows,
            memory_bytes=simulated.memory_bytes,
            workers_per_cell=simulated.workers_per_cell if workers_per_cell is None else workers_per_cell,
            gpus_per_node=gpus_per_node,
            seed=seed,
            noise=noise,
            stragglers=stragglers,
            straggler_factor=straggler_factor,
            failures_per_gpu_hour=failures_per_gpu_hour,
            failures_per_node_hour=failures_per_node_hour,
            restart_seconds=restart_seconds,
            start_seconds=start_seconds,
            start_spread_seconds=start_spread_seconds,
            rows_per_part=simulated.rows_per_part,
            sink_bytes_per_second=math.inf if writer_gb_per_second is None else writer_gb_per_second * 1e9,
            payload=simulated.payload,
            selections=_selections(selections),
        )
        typer.echo(f"costs: {simulated.workload.source}", err=True)
        results: dict[str, SimulationResult] = {}
        if compare:
            from ttsvar_ray.simulation.settings import variants

            for variant in variants(wanted, simulated.coordinator):
                typer.echo(f"{variant.name} ...", err=True)
                results[variant.name] = _run(simulated, variant.settings, variant.coordinator)
            first = next(iter(results.values()))
            lines = [*result_lines(first), "", *comparison_lines(results)]
        else:
            first = _run(simulated, wanted, simulated.coordinator)
            lines = result_lines(first)
        typer.echo("\n".join(lines))
        if json_path is not None:
            _write_json(json_path, first, results)
        if plot is not None:
            from ttsvar_ray.cli.simulation_plot import draw

            draw(first, plot)


def _selections(name: str) -> Literal["real", "cheap"]:
    from ttsvar_ray.errors import ConfigurationError

    if name == "real":
        return "real"
    if name == "cheap":
        return "cheap"
    raise ConfigurationError(f"--selections: expected real or cheap, got {name!r}")


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
