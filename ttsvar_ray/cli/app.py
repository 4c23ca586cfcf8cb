"""The commands, and the entry point."""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from ttsvar_ray.cli.analyze import analyze
from ttsvar_ray.cli.calibrate import calibrate
from ttsvar_ray.cli.check import check
from ttsvar_ray.cli.compare import compare
from ttsvar_ray.cli.convert import convert
from ttsvar_ray.cli.demo import demo
from ttsvar_ray.cli.doctor import doctor
from ttsvar_ray.cli.errors import as_command
from ttsvar_ray.cli.evaluate import evaluate
from ttsvar_ray.cli.export import export
from ttsvar_ray.cli.fetch import fetch
from ttsvar_ray.cli.generate import generate
from ttsvar_ray.cli.plan import plan
from ttsvar_ray.cli.push import push
from ttsvar_ray.cli.replay import replay
from ttsvar_ray.cli.report import report
from ttsvar_ray.cli.score import score, select
from ttsvar_ray.cli.settings import schema, settings
from ttsvar_ray.cli.sheet import sheet
from ttsvar_ray.cli.simulate import simulate
from ttsvar_ray.cli.status import status
from ttsvar_ray.cli.verify import verify

if TYPE_CHECKING:
    from typing_extensions import Buffer

app = typer.Typer(
    name="ttsvar-ray",
    help="Test-time scaling for visual autoregressive models (TTS-VAR) on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(short_help="Images for a prompt set; the same command continues.")(generate)
app.command(short_help="Read a whole output and say what is damaged.")(as_command(check))
app.command(short_help="What a job does to a prompt, and what it costs.")(as_command(plan))
app.command(short_help="Thresholds of an adaptive search, for a budget.")(calibrate)
app.command(short_help="A run on many GPUs, without any.")(as_command(simulate))
app.command(short_help="How far a run is, from its folder.")(as_command(status))
app.command(short_help="Every setting with its default.")(settings)
app.command(short_help="JSON schema of job files, for editors.")(schema)
app.command(short_help="Compare this machine with recorded tensors.")(as_command(verify))
app.command(short_help="Published weights to a model directory.")(as_command(convert))
app.command(short_help="What of this machine and of a job is missing.")(as_command(doctor))
app.command(short_help="Bring what a job reads to where it looks.")(as_command(fetch))
app.command(short_help="A page of a run: gallery and search trees.")(as_command(report))
app.command(short_help="Other rewards over a run, in tables beside it.")(as_command(score))
app.command(short_help="Some images of a run as a data set.")(as_command(select))
app.command(short_help="A run for WebDataset, GenEval and others.")(as_command(export))
app.command(short_help="A run as a data set of the hub, with a card.")(as_command(push))
app.command(short_help="An image of a run at each of its scales.")(as_command(replay))
app.command(short_help="How early a reward knows the end: figures of a pool.")(as_command(analyze))
app.command(short_help="Variants of a job over one prompt set, in one table.")(compare)
app.add_typer(evaluate, name="evaluate", short_help="Score a run or a folder by a benchmark.")
app.command(short_help="The built-in model: raw, best-of-N, TTS-VAR.")(demo)
app.command(short_help="The images of runs on one page; shapes judged.")(as_command(sheet))


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


class _Outlived(io.FileIO):
    """Standard output or error, whose reader may go: what a closed terminal or pipe does not take is dropped.

    The exit code of a command says what it did, not who listened to the end.
    """

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def _outlived(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):  # None of a process that was started without.
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Outlived(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def main() -> None:
    """Run the command line."""
    sys.stdout, sys.stderr = _outlived(sys.stdout), _outlived(sys.stderr)
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # What is registered first runs last: from then on Python has no handlers, and a signal would be the code.
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in stops])
    try:
        app()
    except SystemExit as ended:
        # The verdict stands: who presses now waits for no more of what is left to do.
        for number in stops:
            signal.signal(number, lambda *_, code=ended.code: os._exit(int(code or 0)))
        raise
