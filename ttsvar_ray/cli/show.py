"""How commands show tables, sizes and times to people."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from ttsvar_ray.errors import amount, escape_controls

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ttsvar_ray.results import RunCost

    Rows = Iterable[Sequence[Text | str]]

WIDTH = 80
"""Columns that every line keeps to: what a new terminal has."""
_AS_WIDE_AS_NEEDED = 10_000


def table(headings: Sequence[str], rows: Rows, *, texts: int = 1, tight: bool = False) -> Table:
    """Return a rich table: its first `texts` columns are aligned left, the others (numbers) right.

    A tight one has one blank between columns. Where it does not fit, the last of the texts is folded. Strings
    are taken as they are, without markup.
    """
    from rich.table import Table
    from rich.text import Text

    result = Table(box=None, pad_edge=False, show_header=any(headings), collapse_padding=tight)
    for index, heading in enumerate(headings):
        justify: Literal["left", "right"] = "left" if index < texts else "right"
        result.add_column(Text(heading), justify=justify, overflow="fold", no_wrap=index != texts - 1)
    for row in rows:
        result.add_row(*(Text(escape_controls(cell)) if isinstance(cell, str) else cell for cell in row))
    return result


def table_lines(headings: Sequence[str], rows: Rows, *, texts: int = 1, tight: bool = False) -> list[str]:
    """Return the lines of a table, as plain text and never folded."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=_AS_WIDE_AS_NEEDED, color_system=None)
    with console.capture() as captured:
        console.print(table(headings, rows, texts=texts, tight=tight))
    return [line.rstrip() for line in captured.get().splitlines()]


def wrapped(lines: Sequence[str]) -> list[str]:
    """Return lines of at most `WIDTH` columns; what is longer goes on below, indented."""
    return [
        part
        for line in lines
        for part in (
            textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
            if len(line) > WIDTH
            else [line]
        )
    ]


def duration(seconds: float) -> str:
    """Return "0.12 s", "45 s", "3 min 20 s", "5 h 10 min" or "3 d 4 h"."""
    if 0 < seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size:,} {name} {whole % size // small} {small_name}"
    return f"{whole // 60} min {whole % 60} s"


def bytes_text(count: float) -> str:
    """Return "3.4 GB"."""
    return amount(count, "B")


def cost_facts(cost: RunCost, *, budget: float | None = None) -> list[tuple[str, str]]:
    """Return what a run has cost as (what, value).

    Args:
        budget: images that a prompt was planned to cost.
    """
    facts = []
    if cost.total_flops:
        shares = ", ".join(f"{name} {flops / cost.total_flops:.0%}" for name, flops in cost.flops.items())
        planned = "" if budget is None else f" (budget {budget:g})"
        each = f"{cost.images_per_prompt:.3f} images a prompt{planned}"
        total = f"{amount(cost.total_flops, 'FLOP')} by {cost.strategy} ({shares})"
        facts.append(("cost", f"{each}, {total}"))
        if own := cost.uncounted_code:
            facts.append(("without", f"{own}, which nobody counts; the seconds have it"))
    if cost.prompts:
        counts = (f"{count / cost.prompts:.3g} in {at}" for at, count in cost.trajectories.items())
        facts.append(("searched", f"trajectories a prompt by scales: {', '.join(counts)}"))
    missing = f"; {cost.uncounted_parts} parts do not say" if cost.uncounted_parts else ""
    told = f"{cost.decoded:,} decoded, {cost.scored:,} scored, {cost.embedded:,} embedded, {cost.kept:,} kept"
    facts.append(("drawn", f"{told}{missing}"))
    if cost.sessions:
        times = f"{cost.sessions} session{'s' * (cost.sessions != 1)}"
        facts.append(("devices", f"{duration(cost.device_seconds)} of workers, {times}"))
    return facts


def flops_unit(most: float) -> tuple[str, float]:
    """Return the unit in which the largest of some numbers is read best, and its size."""
    for power, name in ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if most >= power:
            return name, power
    return "FLOP", 1.0
