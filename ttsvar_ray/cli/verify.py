"""`ttsvar-ray verify`: this implementation against recorded tensors of the official one."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from ttsvar_ray.cli import options
from ttsvar_ray.cli.errors import ExitCode, errors_for_people


class Family(str, enum.Enum):
    """Model families that can be verified."""

    INFINITY = "infinity"


def verify(
    family: Annotated[Family, typer.Argument(help="Model family.", show_choices=True)],
    folder: Annotated[Path, typer.Argument(help="Folder of recorded tensors.", metavar="DIR")],
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or auto.")] = "cpu",
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32 (absolute errors) or bfloat16 (relative errors).")
    ] = "float32",
    debug: options.Debug = False,
) -> None:
    """Compare every recorded tensor with what this machine computes; the last line is the verdict.

    Exit codes: 0 all agree; 1 some differ; 2 not such a folder.
    """
    assert family is Family.INFINITY
    with errors_for_people(debug=debug):
        from ttsvar_ray.models.infinity.verify import verify_directory

        report = verify_directory(folder, device=device, dtype=dtype)
        typer.echo("\n".join(report.lines()))
    if not report.passed:
        raise typer.Exit(ExitCode.FAILED)
