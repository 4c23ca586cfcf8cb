"""Progress of a job: a live bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from ttsvar_ray.cli.show import duration
from ttsvar_ray.results import JobProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_EVERY_S = 10.0


class ProgressReporter:
    """Shows the states it is called with; a context manager, so that the terminal is left in order.

    Args:
        console: where to; a live bar if it is a terminal.
        now: seconds on any steady clock.
    """

    def __init__(self, console: Console, *, now: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._now = now
        self._shown_at = -math.inf
        self._shown = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self.has_started = False

    def __enter__(self) -> ProgressReporter:
        return self

    def __exit__(self, *details: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, state: JobProgress) -> None:
        """Show a state."""
        self.has_started = True
        if self._console.is_terminal:
            self._show_bar(state)
        else:
            self._show_line(state)

    def _show_line(self, state: JobProgress) -> None:
        over = state.prompts_resumed + state.prompts_done == state.prompts_total
        line = progress_line(state)
        if line != self._shown and (over or self._now() - self._shown_at >= PLAIN_EVERY_S):
            self._shown, self._shown_at = line, self._now()
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _show_bar(self, state: JobProgress) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("prompts"),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=state.prompts_total)
            self._bar.start()
        assert self._task is not None
        done = state.prompts_resumed + state.prompts_done
        self._bar.update(self._task, completed=done, description=_details(state))


def progress_line(state: JobProgress) -> str:
    """Return a state as one line of text."""
    done = state.prompts_resumed + state.prompts_done
    return f"prompts {done}/{state.prompts_total}  {_details(state)}"


def _details(state: JobProgress) -> str:
    if state.workers == 0 and state.prompts_done == 0:
        return f"waiting for workers (0/{state.workers_wanted} up)"
    words = [f"{state.images / state.seconds:.2f} images/s" if state.seconds > 0 else "starting"]
    if not math.isnan(state.mean_reward):
        words.append(f"reward {state.mean_reward:.3f}")
    words.append(f"workers {state.workers}/{state.workers_wanted}")
    if state.failed:
        words.append(f"failed {state.failed}")
    left = state.prompts_total - state.prompts_resumed - state.prompts_done
    if left and state.prompts_done:
        words.append(f"left {duration(left * state.seconds / state.prompts_done)}")
    return "  ".join(words)
