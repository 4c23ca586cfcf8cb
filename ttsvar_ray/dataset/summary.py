"""What an output folder holds, counted from the files alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from ttsvar_ray.dataset.dead_letters import count_lines, read_letters
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.totals import PartTotals, read_totals, rows_in
from ttsvar_ray.errors import LostRowsError
from ttsvar_ray.storage import Location

_READERS = 16
"""Small files read at a time: an object store answers slowly, but many at once."""

_BATCH = 1024

_CHUNKS_SHOWN = 5
_ROWS_SHOWN = 10

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSummary:
    """Totals over all sittings of a run.

    Attributes:
        chunks: parts that are there.
        prompts: prompts with images.
        images: rows.
        failed: prompts that were given up.
        bad_lines: lines of the prompt file that hold no prompt.
        mean_reward: over the best image of each prompt; NaN without any.
    """

    chunks: int
    prompts: int
    images: int
    failed: int
    bad_lines: int
    mean_reward: float


def summarise_output(layout: OutputLayout, chunks: Mapping[int, range] | None = None) -> OutputSummary:
    """Count what is there, from the parts' footers, a few at a time.

    Args:
        layout: the output folder.
        chunks: the rows of each chunk that must be there by now, whole.

    Raises:
        LostRowsError: a row of `chunks` has neither images nor a dead letter, or both.
        OutputError: a part is damaged.
    """
    parts, letters = layout.data_parts(), layout.failed_parts()
    totals = PartTotals()
    accounted: dict[int, int] = {}
    for index, each in zip(parts, map_files(read_totals, parts.values()), strict=True):
        totals.add(each)
        accounted[index] = each.prompts
    failed = 0
    for index, count in zip(letters, map_files(count_lines, letters.values()), strict=True):
        failed += count
        accounted[index] = accounted.get(index, 0) + count
    wrong = {index: rows for index, rows in (chunks or {}).items() if accounted.get(index, 0) != len(rows)}
    if wrong:
        raise LostRowsError(_lost(layout, wrong))
    return OutputSummary(
        chunks=len(parts),
        prompts=totals.prompts,
        images=totals.images,
        failed=failed,
        bad_lines=count_lines(layout.bad_lines_file),
        mean_reward=totals.reward_sum / totals.prompts if totals.prompts else math.nan,
    )


def _lost(layout: OutputLayout, wrong: Mapping[int, range]) -> str:
    """Return which rows of some chunks are not accounted for once."""
    lines = []
    for index, rows in islice(wrong.items(), _CHUNKS_SHOWN):
        part = layout.data_part(index)
        done = rows_in(part) if part.is_file() else set()
        failed = Counter(letter["row"] for letter in read_letters(layout.failed_part(index)))
        missing = sorted(set(rows) - done - set(failed))
        doubled = sorted(row for row, count in failed.items() if row in done or count > 1)
        if missing:
            lines.append(f"  {part}: neither images nor a dead letter for {_shown(missing)}")
        if doubled:
            lines.append(f"  {layout.failed_part(index)}: one dead letter too many for {_shown(doubled)}")
        if not missing and not doubled:
            lines.append(f"  {part}: expected prompts of {rows} alone, each once; the part holds others")
    if len(wrong) > _CHUNKS_SHOWN:
        lines.append(f"  and {len(wrong) - _CHUNKS_SHOWN} parts more")
    return (
        f"{layout.root}: rows are lost or doubled in {len(wrong)} part{'s' * (len(wrong) != 1)}:\n"
        + "\n".join(lines)
        + "\nDelete these files in data/ to have their prompts generated again by the same command."
    )


def _shown(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - _ROWS_SHOWN} more" if len(rows) > _ROWS_SHOWN else ""
    return f"row{'s' * (len(rows) != 1)} {', '.join(map(str, rows[:_ROWS_SHOWN]))}{more}"


def map_files(read: Callable[[Location], _Result], files: Iterable[Location]) -> Iterator[_Result]:
    """Read many small files, several at a time; results come in order and are not kept."""
    waiting = iter(files)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="output-reader") as pool:
        while batch := list(islice(waiting, _BATCH)):
            yield from pool.map(read, batch)
