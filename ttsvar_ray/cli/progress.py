"""What a run tells on the terminal: facts before it starts, then how far it is; and the log, set up once."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from typing_extensions import assert_never

from ttsvar_ray.cli.show import bytes_text, duration
from ttsvar_ray.job.record import make_fit
from ttsvar_ray.results import JobProgress

if TYPE_CHECKING:
    from ttsvar_ray.job.preflight import Fact, OutputFact, PromptsFact, TimeFact
    from ttsvar_ray.search.plan import Plan

logger = logging.getLogger(__name__)

PLAIN_EVERY_S = 10.0
MOST_BAR_COLUMNS = 30
LEAST_BAR_COLUMNS = 6
NARROW_COLUMNS = 60
"""Below, words go before a bar."""


def teller(console: Console) -> Callable[[Fact], None]:
    """Return what prints each fact as it comes, and has it in the run's log."""
    # The console has the line already: only the log of the run takes it.
    logger.setLevel(logging.DEBUG)

    def tell(fact: Fact) -> None:
        for line in fact_lines(fact):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
            logger.debug("%s", line)

    return tell


def fact_lines(fact: Fact) -> list[str]:
    """Return a fact as lines."""
    from ttsvar_ray.job.preflight import JobFact, OutputFact, PlanFact, PromptsFact, TimeFact, WeightsFact

    match fact:
        case JobFact():
            to = f" -> {fact.output}" if fact.output else ""
            return [_line("job", f"{fact.model}, {fact.strategy} N={fact.n}, seed {fact.seed}{to}")]
        case PromptsFact():
            return [_line("prompts", words) for words in _prompt_words(fact)]
        case PlanFact():
            note = [_line("", f"note: {fact.note}")] if fact.note else []
            return [_line("plan", _plan_words(fact.plan)), *note]
        case WeightsFact():
            names = dict.fromkeys(
                re.sub(r"^(code|weights)\.\w+\.", "", name)
                if ":" in name
                else re.sub("[._]", " ", name.removeprefix("weights."))
                for name in fact.parts
            )
            return [_line("weights", f"found: {', '.join(names)}")] if names else []
        case OutputFact():
            return [_line("output", words) for words in _output_words(fact)]
        case TimeFact():
            return [_line("time", _time_words(fact))]
        case _:
            assert_never(fact)


def _prompt_words(fact: PromptsFact) -> list[str]:
    scan, bad = fact.scan, fact.scan.first_bad_line
    words = f"{scan.count:,} in {fact.path}"
    if bad is None:
        return [words]
    where = f"{bad.file}, line {bad.line}" if bad.file else f"line {bad.line}"
    words += f", {scan.bad_lines:,} bad lines, all in failed/bad_lines.jsonl of a run; {where}: {bad.reason}"
    if fact.max_failed.allows(scan.bad_lines, of=scan.count + scan.bad_lines):
        return [words]
    return [words, f"warning: more bad lines than max_failed ({fact.max_failed}): exit code 3 at the end"]


def _plan_words(plan: Plan) -> str:
    """Return a plan in one line: populations, scales, and which operator stands where."""
    from ttsvar_ray.search.plan import selection_words

    where = selection_words(plan)
    first, last = plan.population_before[0], plan.survivors_after[-1]
    words = f"{first} -> {last} trajectories over {len(plan.scale_schedule)} scales"
    return f"{words}: {where}" if where else words


def _output_words(fact: OutputFact) -> list[str]:
    if not fact.prompts_left:
        return [f"all {fact.parts} parts are there: nothing new to generate"]
    there = f"{fact.parts_there} of {fact.parts} parts are there; " if fact.parts_there else ""
    words = f"{there}{fact.images:,} images to make"
    if fact.image_bytes is not None:
        words += f", about {bytes_text(fact.image_bytes)}"
    if fact.free_bytes is None:
        return [words]
    words += f" ({bytes_text(fact.free_bytes)} free)"
    if fact.image_bytes is not None and fact.image_bytes > fact.free_bytes:
        return [words, "warning: the disk may be full before the end; what is committed then stays"]
    return [words]


def _time_words(fact: TimeFact) -> str:
    devices = f"{fact.workers} x {fact.device}" if fact.workers > 1 else fact.device
    if fact.seconds is None:
        return f"not known on {devices}: the costs of this model are not counted"
    words = f"about {duration(fact.seconds)} on {devices}, without the start (an estimate: {fact.source})"
    rows = ", ".join(map(str, fact.rows))
    return f"{words}; micro-batches of {rows} rows by segment" if rows else words


def _line(name: str, words: str) -> str:
    return f"{name:<9} {words}"


def set_up_logging(console: Console, *, debug: bool) -> None:
    """Send this package's log to `console`: above a live progress bar, or as plain lines."""
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


if TYPE_CHECKING:
    from rich.live import Live


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
        self._said_over = False
        self._live: Live | None = None
        self.has_started = False

    def __enter__(self) -> ProgressReporter:
        return self

    def __exit__(self, *details: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, state: JobProgress) -> None:
        """Show a state."""
        self.has_started = True
        if self._console.is_terminal:
            self._show_bar(state)
        else:
            self._show_line(state)

    def _show_line(self, state: JobProgress) -> None:
        line = progress_line(state)
        is_due = self._now() - self._shown_at >= PLAIN_EVERY_S
        if self._said_over or line == self._shown or not (state.is_over or is_due):
            return
        self._shown, self._shown_at, self._said_over = line, self._now(), state.is_over
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _show_bar(self, state: JobProgress) -> None:
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()
        self._live.update(_Bar(state))


class _Bar:
    """A state, as wide as the terminal is when it is drawn."""

    def __init__(self, state: JobProgress) -> None:
        self._state = state

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(bar_line(self._state, options.max_width), no_wrap=True, overflow="crop")


def bar_line(state: JobProgress, width: int) -> str:
    """Return a state as a line of at most `width` columns.

    Count, share and time left always stand there; a bar and everything else where there is room.
    """
    done = state.prompts_resumed + state.prompts_done
    share = done / state.prompts_total if state.prompts_total else 1.0
    # 99.99 % is not all.
    words = [f"{done:,}/{state.prompts_total:,}", f"{math.floor(100 * share)} %"]
    left = state.seconds_left
    if left is not None:
        words.append(f"left {duration(left)}")
    kept = LEAST_BAR_COLUMNS + 2 if width >= NARROW_COLUMNS else 0
    for detail in _details(state):
        if len("  ".join([*words, detail])) + kept <= width:
            words.append(detail)
    line = "  ".join(words)
    room = min(MOST_BAR_COLUMNS, width - len(line) - 2)
    if room >= LEAST_BAR_COLUMNS:
        full = math.floor(share * room)
        line = f"{'━' * full}{'╌' * (room - full)}  {line}"
    return line


def progress_line(state: JobProgress) -> str:
    """Return a state as one line of text."""
    done = state.prompts_resumed + state.prompts_done
    left = state.seconds_left
    words = [*_details(state), *([] if left is None else [f"left {duration(left)}"])]
    return f"prompts {done:,}/{state.prompts_total:,}  {'  '.join(words)}"


def _details(state: JobProgress) -> list[str]:
    """Return what else there is to say, the most important first."""
    if state.workers == 0 and state.prompts_done == 0:
        return [f"waiting for workers (0/{state.workers_wanted} up)"]
    words = [f"failed {state.failed:,}"] if state.failed else []
    words.append(f"{state.images / state.seconds:.2f} images/s" if state.seconds > 0 else "starting")
    words.append(f"workers {state.workers}/{state.workers_wanted}")
    if not math.isnan(state.mean_reward):
        words.append(f"reward {state.mean_reward:.3f}")
    return words
