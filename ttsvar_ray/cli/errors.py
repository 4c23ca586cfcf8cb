"""Exit codes, and errors as people want to read them: one message, no traceback."""

from __future__ import annotations

import contextlib
import enum
import errno
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import typer

from ttsvar_ray.cli.options import Debug
from ttsvar_ray.errors import (
    CannotStartError,
    ConfigurationError,
    InterruptedRunError,
    LostRowsError,
    PieceError,
    RunFailedError,
    TtsVarError,
    own_line,
)


class ExitCode(enum.IntEnum):
    """What the exit codes mean."""

    DONE = 0
    FAILED = 1
    """Something unforeseen, or a verdict that is no."""
    BAD_SETTINGS = 2
    """Settings, prompts, weights or output folder that cannot be used; nothing was started."""
    TOO_MANY_FAILED = 3
    """Done, but more prompts have no image than `max_failed` allows: see `failed/` in the output."""
    RESUMABLE = 75
    """Stopped early; the same command goes on."""
    INTERRUPTED = 130
    """Ctrl-C before anything was started."""


@contextlib.contextmanager
def errors_for_people(*, debug: bool, has_started: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn exceptions of a command into a message on standard error and an exit code.

    Args:
        debug: let exceptions through, with their tracebacks.
        has_started: whether generation has begun: an error is then no longer one of settings alone.
    """
    try:
        yield
    except typer.Exit:
        raise
    except (InterruptedRunError, RunFailedError) as error:
        _end(error, ExitCode.RESUMABLE, debug=debug)
    except CannotStartError as error:
        _end(error, ExitCode.BAD_SETTINGS, debug=debug)
    except (LostRowsError, PieceError) as error:
        _end(error, ExitCode.FAILED, debug=debug)
    except TtsVarError as error:
        _end(error, ExitCode.FAILED if has_started() else ExitCode.BAD_SETTINGS, debug=debug)
    except OSError as error:
        # Of a file, or a full disk: what the system refuses is no defect of ours.
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        where = error.filename or ("what is written here" if is_full else None)
        message = f"{where}: {error.strerror}{own_line(error)}" if where else _unexpected(error)
        begun = ExitCode.RESUMABLE if is_full else ExitCode.FAILED
        code = ExitCode.BAD_SETTINGS if where and not has_started() else begun
        _end(error, code, debug=debug, message=message)
    except KeyboardInterrupt as error:
        started = has_started()
        message = "interrupted; committed parts stay, the same command goes on" if started else "interrupted"
        _end(error, ExitCode.RESUMABLE if started else ExitCode.INTERRUPTED, debug=debug, message=message)
    except Exception as error:  # noqa: BLE001 - the outermost place of a command
        _end(error, ExitCode.FAILED, debug=debug, message=_unexpected(error))


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function as a command: it has `--debug`, and its errors are as people want to read them."""

    @functools.wraps(function)
    def command(*, debug: bool = False, **given: Any) -> None:
        with errors_for_people(debug=debug):
            function(**given)

    own = inspect.signature(function, eval_str=True).parameters.values()
    flag = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    # What typer reads.
    vars(command)["__signature__"] = inspect.Signature([*own, flag])
    command.__annotations__ = {one.name: one.annotation for one in (*own, flag)}
    return command


def _unexpected(error: Exception) -> str:
    if where := own_line(error):  # a fault of the code that the user gave
        return f"{type(error).__name__}: {error}{where}"
    return f"unexpected {type(error).__name__}: {error}\nRun again with --debug to see where."


def _end(error: BaseException, code: ExitCode, *, debug: bool, message: str | None = None) -> None:
    from ttsvar_ray.storage.uris import for_people

    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, ConfigurationError) and len(error.problems) > 1:
        lines = "\n".join(f"  {problem}" for problem in error.problems)
        message = f"{len(error.problems)} problems:\n{lines}"
    typer.echo(f"ttsvar-ray: {for_people(str(message or error))}", err=True)
    raise typer.Exit(code) from error
