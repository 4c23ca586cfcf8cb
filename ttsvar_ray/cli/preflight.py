"""What is known of a job before it starts, in words: a line for each fact."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from typing_extensions import assert_never

from ttsvar_ray.cli.show import bytes_text, duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from ttsvar_ray.job.preflight import Fact, OutputFact, PromptsFact, TimeFact
    from ttsvar_ray.search.plan import Plan

logger = logging.getLogger(__name__)


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
            names = [name.removeprefix("weights.").replace("_", " ").replace(".", " ") for name in fact.parts]
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
