"""`ttsvar-ray doctor`: what of this machine is ready."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import ExitCode, errors_for_people

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from ttsvar_ray.cli.doctor.checks import Check, Finding, Mark
    from ttsvar_ray.config import JobConfig

WEIGHTS_FOLDER = Path("weights")
_STYLES = {"ok": "green", "warn": "yellow", "missing": "cyan", "broken": "bold red"}


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
        import json

        from rich.console import Console

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


def examine(config: JobConfig | None, fetched: Path) -> list[Finding]:
    """Return everything that was found.

    Args:
        config: a job to look at, None for what is published.
        fetched: folder of fetched rewards and features.
    """
    from huggingface_hub import constants

    from ttsvar_ray.cli.doctor import checks, weights
    from ttsvar_ray.cli.doctor.checks import Mark
    from ttsvar_ray.job.resolved import model_choice
    from ttsvar_ray.models.description import ModelChoice

    folders = {**output_folder(config), "hub cache": Path(constants.HF_HUB_CACHE)}
    choices, named = [ModelChoice(name=name) for name in weights.MODELS], {}
    if config is not None:
        choices, named = [model_choice(config)], _named_paths(config)
    planned: tuple[tuple[str, Check, Mark], ...] = (
        ("software", checks.check_software, Mark.BROKEN),
        ("machine", checks.check_machine, Mark.WARN),
        ("disk", partial(checks.check_disk, folders), Mark.WARN),
        ("ray", checks.check_ray, Mark.BROKEN),
        ("weights", weights.check_hub, Mark.WARN),
        ("weights", partial(weights.check_models, choices), Mark.MISSING),
        ("weights", partial(weights.check_job_paths, named), Mark.MISSING),
        ("weights", partial(weights.check_networks, fetched), Mark.MISSING),
        ("built-in model", checks.check_built_in_model, Mark.BROKEN),
    )
    return [
        finding
        for area, check, otherwise in planned
        for finding in checks.run_check(area, check, otherwise=otherwise)
    ]


def output_folder(config: JobConfig | None) -> dict[str, Path]:
    """Return the folder of this machine that the output fills: of an object store, where parts are made."""
    import tempfile

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


def show(findings: Sequence[Finding], console: Console) -> None:
    """Print one row per finding, commands in place of what is missing, and the verdict.

    A terminal gets a coloured table that folds long texts; elsewhere lines are never folded.
    """
    from ttsvar_ray.cli.show import table, table_lines

    rows, headings = _rows(findings), ("",) * 4
    if console.is_terminal:
        console.print(table(headings, rows, texts=4))
    else:
        for line in table_lines(headings, rows, texts=4):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print()
    console.print(verdict(findings), markup=False, highlight=False, soft_wrap=True)


def _rows(findings: Sequence[Finding]) -> list[tuple[Text | str, ...]]:
    """Return area, name, mark and text; an area is written once, a command below its finding's name."""
    from rich.text import Text

    rows: list[tuple[Text | str, ...]] = []
    before = ""
    for finding in findings:
        area = "" if finding.area == before else finding.area
        before = finding.area
        mark = finding.mark.value
        commands = [] if finding.command is None else finding.command.splitlines()
        lines = commands if commands and mark == "missing" else [finding.text, *commands]
        rows.append((Text(area, style="bold"), finding.name, Text(mark, style=_STYLES[mark]), lines[0]))
        rows += [("", "", "", line) for line in lines[1:]]
    return rows


def can_run(findings: Sequence[Finding]) -> bool:
    """Whether nothing keeps the built-in model from running."""
    return all(finding.mark.value != "broken" for finding in findings)


def verdict(findings: Sequence[Finding]) -> str:
    """Return the last line."""
    count = Counter(finding.mark.value for finding in findings)
    extra = f"{count['warn']} to look at, {count['missing']} missing"
    if count["missing"]:
        extra += " (their commands are the publishers'; nothing was fetched to try them)"
    if can_run(findings):
        return f"ready: the built-in model runs; {extra}"
    return f"not ready: {count['broken']} broken; {extra}"
