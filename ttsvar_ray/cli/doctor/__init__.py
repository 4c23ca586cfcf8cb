"""`ttsvar-ray doctor`: what of this machine is ready, or what keeps one job from running here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import Console

    from ttsvar_ray.cli.doctor.checks import Check, Finding, Mark
    from ttsvar_ray.config.job import JobConfig

WEIGHTS_FOLDER = Path("weights")
_STYLES = {"ok": "green", "warn": "yellow", "missing": "cyan", "broken": "bold red"}


def doctor(
    job: options.Job = None,
    model: options.Model = None,
    weights: Annotated[
        Path, typer.Option("--weights", help="Folder of fetched rewards and features, one folder each.")
    ] = WEIGHTS_FOLDER,
    scores: Annotated[
        bool, typer.Option("--scores/--no-scores", help="Load the job's rewards and score 20 known pairs.")
    ] = True,
    as_json: options.AsJson = False,
    settings: options.Settings = None,
) -> None:
    """Say what of this machine is ready, and how to get what is not. Asks no network, starts no cluster.

    With a job or a model: exactly what that needs, where it looks for it, and the commands that put it there;
    `ttsvar-ray doctor JOB.yaml && ttsvar-ray generate JOB.yaml`. Its rewards, where their files are here,
    are loaded and score twenty pictures with a right and a wrong caption. Without: what is published.

    Exit codes: 0 the job (or, without one, the built-in model) runs here; 1 it does not, and why; 2 settings
    that make no job.

    Example: ttsvar-ray doctor jobs/infinity_2b.yaml
    """
    import json

    from rich.console import Console

    chosen: JobConfig | None = None
    if job is not None or model is not None:
        from ttsvar_ray.config.load import load_config

        flags = {"model.name": model}
        chosen = load_config(job, options.overrides(flags, settings), needs_files=False)
    console, findings = Console(), []
    for finding in _examine(chosen, weights, scores=scores):
        findings.append(finding)
        if not as_json:
            show(finding, console)
    ready = can_run(findings, job=chosen is not None)
    if as_json:
        report = {"ready": ready, "findings": [finding.to_json() for finding in findings]}
        typer.echo(json.dumps(report, indent=1))
    else:
        words = verdict(findings, job=chosen is not None)
        console.print(f"\n{words}", markup=False, highlight=False, soft_wrap=True)
    if not ready:
        raise typer.Exit(ExitCode.FAILED)


def _examine(config: JobConfig | None, fetched: Path, *, scores: bool = True) -> Iterator[Finding]:
    """Yield everything that is found, each as soon as it is.

    Args:
        config: a job to look at, None for what is published.
        fetched: folder of fetched rewards and features.
        scores: whether the job's rewards are loaded and tried.

    Raises:
        ConfigurationError, CheckpointError: settings that make no job.
    """
    from huggingface_hub import constants

    from ttsvar_ray.cli.doctor import checks
    from ttsvar_ray.cli.doctor.checks import Mark

    planned: list[tuple[str, Check, Mark]] = [("software", checks.check_software, Mark.BROKEN)]
    if config is not None:
        from ttsvar_ray.cli.doctor import job as of_job

        # What makes no job is said before anything is looked at.
        needs = of_job.needs_of(config)
        planned += [
            ("job", partial(of_job.check_prompts, config), Mark.MISSING),
            ("job", partial(of_job.check_model, needs), Mark.MISSING),
            ("job", partial(of_job.check_networks, needs), Mark.MISSING),
            ("job", partial(of_job.check_own_code, needs), Mark.MISSING),
            ("job", partial(of_job.check_choice, needs), Mark.WARN),
            ("job", partial(of_job.check_device, needs), Mark.WARN),
            *([("job", partial(of_job.check_scores, needs), Mark.MISSING)] if scores else []),
        ]
    folders = {**output_folder(config), "hub cache": Path(constants.HF_HUB_CACHE)}
    planned += [
        ("machine", checks.check_machine, Mark.WARN),
        ("disk", partial(checks.check_disk, folders), Mark.WARN),
        ("ray", checks.check_ray, Mark.BROKEN),
    ]
    if config is None:
        from ttsvar_ray.cli.doctor import weights
        from ttsvar_ray.models.description import ModelChoice

        choices = [ModelChoice(name=name) for name in weights.MODELS]
        planned += [
            ("weights", weights.check_hub, Mark.WARN),
            ("weights", partial(weights.check_models, choices), Mark.MISSING),
            ("weights", partial(weights.check_networks, fetched), Mark.MISSING),
        ]
    planned.append(("built-in model", checks.check_built_in_model, Mark.BROKEN))
    for area, check, otherwise in planned:
        yield from checks.run_check(area, check, otherwise=otherwise)


def output_folder(config: JobConfig | None) -> dict[str, Path]:
    """Return the folder of this machine that the output fills: of an object store, where parts are made."""
    import tempfile

    from ttsvar_ray.storage.uris import is_uri

    if config is not None and is_uri(config.output.path):
        return {"parts before upload": Path(tempfile.gettempdir())}
    return {"output": Path(config.output.path) if config is not None and config.output.path else Path()}


def show(finding: Finding, console: Console) -> None:
    """Print one finding, and below it its commands, each on a line of its own that nothing folds."""
    from rich.text import Text

    mark = finding.mark.value
    line = Text.assemble(
        (f"{finding.area:<15}", "bold"), f"{finding.name:<22} ", (f"{mark:<8}", _STYLES[mark]), finding.text
    )
    console.print(line, highlight=False, soft_wrap=True)
    for command in (finding.command or "").splitlines():
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def can_run(findings: Sequence[Finding], *, job: bool) -> bool:
    """Whether nothing keeps the job, or without one the built-in model, from running."""
    return not any(_blocks(finding, job=job) for finding in findings)


def _blocks(finding: Finding, *, job: bool) -> bool:
    is_needed = job and finding.area == "job"
    return finding.mark.value == "broken" or (is_needed and finding.mark.value == "missing")


def verdict(findings: Sequence[Finding], *, job: bool) -> str:
    """Return the last line."""
    count = Counter(finding.mark.value for finding in findings)
    extra = f"{count['warn']} to look at, {count['missing']} missing"
    if count["missing"]:
        extra += " (their commands are the publishers'; nothing was fetched to try them)"
    what = "the job" if job else "the built-in model"
    if can_run(findings, job=job):
        return f"ready: {what} runs; {extra}"
    names = ", ".join(finding.name for finding in findings if _blocks(finding, job=job))
    return f"not ready: {what} needs {names}; {extra}"
