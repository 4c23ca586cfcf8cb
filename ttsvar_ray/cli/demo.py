"""`ttsvar-ray demo`: the main job on the built-in model, beside its two baselines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import ExitCode, errors_for_people
from ttsvar_ray.cli.generate import is_within_budget, run

if TYPE_CHECKING:
    from ttsvar_ray.config.job import JobConfig

DEFAULT_JOB = Path("jobs/shapes_demo.yaml")
SIDE_BY_SIDE_NAME = "side_by_side.png"


def demo(
    job: Annotated[Path, typer.Argument(help="Job of the built-in model.", metavar="JOB.yaml")] = DEFAULT_JOB,
    output: Annotated[
        str | None, typer.Option("--output", help="Output folder; by default the job's own.", metavar="DIR")
    ] = None,
    settings: options.Settings = None,
    debug: options.Debug = False,
) -> None:
    """Run a job of the built-in model, then raw and best-of-N at about the same FLOPs; judge all three.

    The job's own run is in its output folder, with a contact sheet and one of all three side by
    side (PNG); the baselines are in
    `baselines/` below it. What is there already is not generated again.

    Example: ttsvar-ray demo --output outputs/shapes-demo
    """
    from rich.console import Console

    console = Console(stderr=True)
    with errors_for_people(debug=debug):
        from ttsvar_ray.cluster.session import is_submitted_job
        from ttsvar_ray.config.load import load_config
        from ttsvar_ray.errors import OutputError
        from ttsvar_ray.job.weights import resolve_output
        from ttsvar_ray.storage.uris import is_uri

        config = load_config(job, options.overrides({"output.path": output}, settings))
        if is_uri(config.output.path):
            raise OutputError("output.path: expected a folder of this machine for the demo, got a URI")
        root = Path(resolve_output(config.output.path, submitted=is_submitted_job()))
        jobs = _with_baselines(config, root)
        failures = 0
        for label, (each, _) in jobs.items():
            typer.echo(f"{label}: {each.output.path}", err=True)
            summary = run(each, console=console, debug=debug)
            failures += 0 if is_within_budget(each, summary) else summary.failed + summary.bad_lines
        _report(jobs, root)
    if failures:
        typer.echo(f"{failures} prompts have no image: see the failed folders in {root}")
        raise typer.Exit(ExitCode.TOO_MANY_FAILED)


def _with_baselines(config: JobConfig, root: Path) -> dict[str, tuple[JobConfig, float]]:
    """Return the job and its baselines by label, each with its FLOPs per prompt over raw's."""
    from ttsvar_ray.cli.plan_report import job_report
    from ttsvar_ray.errors import ConfigurationError
    from ttsvar_ray.job.resolved import resolve

    def flops(job: JobConfig) -> float:
        counted = job_report(resolve(job)).counted
        if counted is None:
            raise ConfigurationError(f"model {job.model.name!r}: the costs of its family are not counted")
        return counted.cost.flops

    # The job's own run shows the cluster; workers start once, for it. The bytes are the same either way.
    main = config.model_copy(
        update={
            "output": config.output.model_copy(update={"path": str(root)}),
            "cluster": config.cluster.model_copy(update={"in_process": False}),
        }
    )
    raw = _baseline(config, root, "raw", 1)
    n = max(2, round(flops(main) / flops(raw)))
    best = _baseline(config, root, "best-of-n", n)
    own = f"{config.strategy.name} N={config.strategy.n}"
    labelled = {own: main, "raw": raw, f"best-of-{n}": best}
    return {label: (job, flops(job) / flops(raw)) for label, job in labelled.items()}


def _baseline(config: JobConfig, root: Path, name: str, n: int) -> JobConfig:
    from ttsvar_ray.config.running import ClusterConfig
    from ttsvar_ray.config.sections import StrategyConfig

    folder = root / "baselines" / (name if n == 1 else f"best-of-{n}")
    return config.model_copy(
        update={
            "strategy": StrategyConfig(name=name, n=n),
            "output": config.output.model_copy(update={"path": str(folder)}),
            "cluster": ClusterConfig(in_process=True),
        }
    )


def _report(jobs: dict[str, tuple[JobConfig, float]], root: Path) -> None:
    from ttsvar_ray.cli.sheet import (
        SHEET_NAME,
        accuracy,
        accuracy_lines,
        save_sheet,
        save_side_by_side,
        shown_images,
        summary_words,
    )
    from ttsvar_ray.cli.show import table_lines

    judged = {label: shown_images(job.output.path) for label, (job, _) in jobs.items()}
    own = next(iter(judged))
    save_sheet(judged[own], root / SHEET_NAME, title=f"{own}: {summary_words(judged[own])}")
    by_cost = sorted(jobs, key=lambda name: jobs[name][1])
    save_side_by_side({label: judged[label] for label in by_cost}, root / SIDE_BY_SIDE_NAME)
    rows = []
    for label in by_cost:
        share, error = accuracy(judged[label])
        reward = sum(image.reward for image in judged[label]) / len(judged[label])
        rows.append((label, f"{jobs[label][1]:.2f}x", f"{share:.3f} +- {error:.3f}", f"{reward:.4f}"))
    lines = ["", *table_lines(("strategy", "FLOPs", "accuracy", "mean reward"), rows)]
    lines += ["", f"{own} by kind of prompt:", *accuracy_lines(judged[own])]
    lines += [
        "",
        f"contact sheet  {root / SHEET_NAME}",
        f"side by side   {root / SIDE_BY_SIDE_NAME}",
        f'data set       datasets.load_dataset("{root}", split="train")',
    ]
    typer.echo("\n".join(lines))
