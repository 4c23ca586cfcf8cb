"""`ttsvar-ray check`: whether an output folder is whole, to the bit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import ExitCode

if TYPE_CHECKING:
    from ttsvar_ray.report.check import CheckReport


def check(
    output: Annotated[str, typer.Argument(help="Folder or URI of a run.", metavar="OUTPUT")],
    as_json: options.AsJson = False,
) -> None:
    """Read a whole output: digests, page checksums, every image, counts, ids and ordinals.

    Exit codes: 0 all is whole; 1 it is not, each problem is a line; 2 not the output of a run.

    Example: ttsvar-ray check outputs/mine
    """
    report = check_output_at(output, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(report.to_json(), ensure_ascii=True))
    if not report.is_whole:
        raise typer.Exit(ExitCode.FAILED)


def check_output_at(output: str, *, quiet: bool = False) -> CheckReport:
    """Check an output folder; unless `quiet`, print problems as they are found, and then the verdict."""
    from ttsvar_ray.dataset.layout import OutputLayout
    from ttsvar_ray.report.check import check_folder
    from ttsvar_ray.storage.uris import for_people

    if quiet:
        return check_folder(OutputLayout(output))
    report = check_folder(
        OutputLayout(output), on_problem=lambda problem: typer.echo(for_people(str(problem)))
    )
    if not report.is_whole:
        typer.echo(
            "To have a part made again, with its trace and manifest, delete its file in data/ and type the "
            "command that began the run."
        )
    typer.echo(report.verdict())
    return report
