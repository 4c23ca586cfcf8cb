"""Findings on one screen: a coloured table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ttsvar_ray.cli.doctor.finding import Finding, Mark

_STYLES = {Mark.OK: "green", Mark.WARN: "yellow", Mark.MISSING: "cyan", Mark.BROKEN: "bold red"}


def show(findings: Sequence[Finding], console: Console) -> None:
    """Print one row per finding, commands in place of what is missing, and the verdict."""
    rows = _rows(findings)
    if console.is_terminal:
        table = Table(box=None, pad_edge=False, show_header=False)
        for column in ("area", "name", "mark"):
            table.add_column(column, no_wrap=True)
        table.add_column("text", overflow="fold")
        for area, name, mark, text in rows:
            style = _STYLES[Mark(mark)] if mark else ""
            table.add_row(Text(area, style="bold"), name, Text(mark, style=style), Text(text))
        console.print(table)
    else:
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for *cells, text in rows:
            padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
            console.print("  ".join([*padded, text]), markup=False, highlight=False, soft_wrap=True)
    console.print()
    console.print(verdict(findings), markup=False, highlight=False, soft_wrap=True)


def _rows(findings: Sequence[Finding]) -> list[tuple[str, str, str, str]]:
    """Return area, name, mark and text; an area is written once, a command below its finding's name."""
    rows = []
    before = ""
    for finding in findings:
        area = "" if finding.area == before else finding.area
        before = finding.area
        lines = [finding.text]
        if finding.command is not None:
            commands = finding.command.splitlines()
            lines = commands if finding.mark is Mark.MISSING else [finding.text, *commands]
        rows.append((area, finding.name, finding.mark.value, lines[0]))
        rows += [("", "", "", line) for line in lines[1:]]
    return rows


def can_run(findings: Sequence[Finding]) -> bool:
    """Whether nothing keeps the built-in model from running."""
    return all(finding.mark is not Mark.BROKEN for finding in findings)


def verdict(findings: Sequence[Finding]) -> str:
    """Return the last line."""
    count = {mark: sum(finding.mark is mark for finding in findings) for mark in Mark}
    extra = f"{count[Mark.WARN]} to look at, {count[Mark.MISSING]} missing"
    if count[Mark.MISSING]:
        extra += " (their commands are the publishers'; nothing was fetched to try them)"
    if can_run(findings):
        return f"ready: the built-in model runs; {extra}"
    return f"not ready: {count[Mark.BROKEN]} broken; {extra}"
