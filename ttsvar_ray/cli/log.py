"""The one set-up of logging: this package's events on standard error."""

from __future__ import annotations

import logging

from rich.console import Console

from ttsvar_ray.job.record import make_fit


def set_up_logging(console: Console, *, debug: bool) -> None:
    """Send this package's log to `console`: above a live progress bar, or as plain lines.

    Args:
        console: of standard error.
        debug: show debug events, too.
    """
    handler: logging.Handler
    if console.is_terminal:
        from rich.highlighter import NullHighlighter
        from rich.logging import RichHandler

        # The highlighter would colour the number in `cell-0`; the time is today's, on this machine's clock.
        handler = RichHandler(
            console=console,
            show_path=False,
            show_level=False,
            markup=False,
            highlighter=NullHighlighter(),
            log_time_format="%H:%M:%S",
        )
    else:
        handler = logging.StreamHandler(console.file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.setLevel(logging.DEBUG if debug else logging.INFO)
    handler.addFilter(make_fit)
    package = logging.getLogger("ttsvar_ray")
    package.handlers[:] = [handler]
    package.setLevel(logging.DEBUG if debug else logging.INFO)
    # Ray gives the root logger a handler of its own; every line would come twice.
    package.propagate = False
