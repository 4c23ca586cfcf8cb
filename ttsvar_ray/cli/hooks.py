"""Commands of the user's that a run calls: for each part that is committed, and when it ends.

They run in the user's shell, one after the other, beside the run and never in its way: one that fails is a
warning. What they are told is in environment variables; nothing is put into the command's text.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import typer

from ttsvar_ray.cli.errors import ExitCode

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
"""For commands of parts that still run, or wait, when the run has ended."""

_SHOWN = 400


class Hooks:
    """The commands of one run.

    Args:
        on_part: for each part that this session commits, or None. TTSVAR_OUTPUT is the output folder or URI,
            TTSVAR_PART the part's file.
        on_exit: when the session has ended, or None. TTSVAR_OUTPUT and TTSVAR_EXIT_CODE.
        output: the folder as the settings name it, until a part says where it is.
    """

    def __init__(self, *, on_part: str | None, on_exit: str | None, output: str) -> None:
        self._on_part = on_part
        self._on_exit = on_exit
        self._output = output
        # One thread: parts are told of in the order in which they were committed.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hooks")

    def part(self, root: str, file: str) -> None:
        """Tell of a part; returns at once."""
        self._output = root
        if self._on_part is not None:
            self._thread.submit(_call, self._on_part, {"TTSVAR_OUTPUT": root, "TTSVAR_PART": file})

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Tell of the end of what is inside, by its exit code, when all parts are told of."""
        code = int(ExitCode.FAILED)
        try:
            yield
            code = 0
        except typer.Exit as ended:
            code = ended.exit_code
            raise
        finally:
            waiting = self._thread.submit(lambda: None)
            with contextlib.suppress(TimeoutError):
                waiting.result(PATIENCE_SECONDS)
            self._thread.shutdown(wait=False, cancel_futures=True)
            if self._on_exit is not None:
                _call(self._on_exit, {"TTSVAR_OUTPUT": self._output, "TTSVAR_EXIT_CODE": str(code)})


def _call(command: str, told: dict[str, str]) -> None:
    done = subprocess.run(  # noqa: S602 - the user's own command line
        command,
        shell=True,
        env={**os.environ, **told},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_SHOWN:]
        logger.warning(
            "the command %r ended with %d: %s", command, done.returncode, said or "it said nothing"
        )
