"""The command: run all checks, show them, say whether the built-in model runs."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import ExitCode, errors_for_people

if TYPE_CHECKING:
    from ttsvar_ray.cli.doctor.finding import Finding
    from ttsvar_ray.config import JobConfig

WEIGHTS_FOLDER = Path("weights")


def doctor(
    job: options.Job = None,
    model: options.Model = None,
    weights: Annotated[
        Path, typer.Option("--weights", help="Folder of fetched rewards and features, one folder each.")
    ] = WEIGHTS_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    settings: options.Settings = None,
    debug: options.Debug = False,
) -> None:
    """Say what of this machine is ready, and how to get what is not. Asks no network, starts no cluster.

    With a job or a model, that model's weights are looked for; without, those of the published models.

    Exit codes: 0 the built-in model runs here; 1 it does not.
    """
    with errors_for_people(debug=debug):
        from rich.console import Console

        from ttsvar_ray.cli.doctor.screen import can_run, show

        chosen: JobConfig | None = None
        if job is not None or model is not None:
            from ttsvar_ray.config import load_config

            flags = {"model.name": model}
            chosen = load_config(job, options.overrides(flags, settings), needs_files=False)
        findings = examine(chosen, weights)
        ready = can_run(findings)
        if as_json:
            report = {"ready": ready, "findings": [finding.to_json() for finding in findings]}
            typer.echo(json.dumps(report, indent=1))
        else:
            show(findings, Console())
    if not ready:
        raise typer.Exit(ExitCode.FAILED)


def examine(config: JobConfig | None, weights: Path) -> list[Finding]:
    """Return everything that was found.

    Args:
        config: a job to look at, None for what is published.
        weights: folder of fetched rewards and features.
    """
    from huggingface_hub import constants

    from ttsvar_ray.cli.doctor.finding import Check, Mark, run_check
    from ttsvar_ray.cli.doctor.machine import check_disk, check_machine
    from ttsvar_ray.cli.doctor.ray_cluster import check_ray
    from ttsvar_ray.cli.doctor.self_test import check_built_in_model
    from ttsvar_ray.cli.doctor.software import check_software
    from ttsvar_ray.cli.doctor.weights import MODELS, check_hub, check_job_paths, check_judges, check_models
    from ttsvar_ray.job.resolved import model_choice
    from ttsvar_ray.models.choice import ModelChoice

    folders = {**_output_folder(config), "hub cache": Path(constants.HF_HUB_CACHE)}
    choices = [ModelChoice(name=name) for name in MODELS] if config is None else [model_choice(config)]
    named = {} if config is None else _named_paths(config)
    checks: tuple[tuple[str, Check, Mark], ...] = (
        ("software", check_software, Mark.BROKEN),
        ("machine", check_machine, Mark.WARN),
        ("disk", partial(check_disk, folders), Mark.WARN),
        ("ray", check_ray, Mark.BROKEN),
        ("weights", check_hub, Mark.WARN),
        ("weights", partial(check_models, choices), Mark.MISSING),
        ("weights", partial(check_job_paths, named), Mark.MISSING),
        ("weights", partial(check_judges, weights), Mark.MISSING),
        ("built-in model", check_built_in_model, Mark.BROKEN),
    )
    return [
        finding
        for area, check, otherwise in checks
        for finding in run_check(area, check, otherwise=otherwise)
    ]


def _output_folder(config: JobConfig | None) -> dict[str, Path]:
    """Return the folder of this machine that the output fills: of an object store, where parts are made."""
    from ttsvar_ray.storage import is_uri

    if config is not None and is_uri(config.output.path):
        return {"parts before upload": Path(tempfile.gettempdir())}
    return {"output": Path(config.output.path) if config is not None and config.output.path else Path()}


def _named_paths(config: JobConfig) -> dict[str, str | None]:
    members = config.reward.members or {}
    return {
        "reward.path": config.reward.path,
        **{f"reward {name}": path for name, path in members.items()},
        "features.backbone": config.features.backbone,
    }
