"""The commands, and the entry point."""

from __future__ import annotations

from typing import Annotated

import typer

from ttsvar_ray.cli.calibrate import calibrate
from ttsvar_ray.cli.check import check
from ttsvar_ray.cli.convert import convert
from ttsvar_ray.cli.demo import demo
from ttsvar_ray.cli.doctor import doctor
from ttsvar_ray.cli.evaluate import evaluate
from ttsvar_ray.cli.export import export
from ttsvar_ray.cli.fetch import fetch
from ttsvar_ray.cli.generate import generate
from ttsvar_ray.cli.plan import plan
from ttsvar_ray.cli.replay import replay
from ttsvar_ray.cli.report import report
from ttsvar_ray.cli.settings import schema, settings
from ttsvar_ray.cli.shapes_report import shapes_report
from ttsvar_ray.cli.simulate import simulate
from ttsvar_ray.cli.status import status
from ttsvar_ray.cli.verify import verify

app = typer.Typer(
    name="ttsvar-ray",
    help="Test-time scaling for visual autoregressive models (TTS-VAR) on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(generate)
app.command()(check)
app.command()(plan)
app.command()(calibrate)
app.command()(simulate)
app.command()(status)
app.command()(settings)
app.command()(schema)
app.command()(verify)
app.command()(convert)
app.command()(doctor)
app.command()(fetch)
app.command()(report)
app.command()(export)
app.command()(replay)
app.add_typer(evaluate, name="evaluate")
app.command()(demo)
app.command("shapes-report")(shapes_report)


def _show_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(importlib.metadata.version("ttsvar-ray"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Test-time scaling for visual autoregressive models (TTS-VAR) on Ray."""


def main() -> None:
    """Run the command line."""
    app()
