"""What an output folder holds, counted from the files alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from ttsvar_ray.dataset.dead_letters import count_lines
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.totals import PartTotals, read_totals
from ttsvar_ray.storage import Location

_READERS = 16
"""Small files read at a time: an object store answers slowly, but many at once."""

_BATCH = 1024

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


def summarise_output(layout: OutputLayout) -> OutputSummary:
    """Count what is there, from the parts' footers, a few at a time."""
    parts = layout.data_parts()
    totals = PartTotals()
    for each in map_files(read_totals, parts.values()):
        totals.add(each)
    return OutputSummary(
        chunks=len(parts),
        prompts=totals.prompts,
        images=totals.images,
        failed=sum(map_files(count_lines, layout.failed_parts().values())),
        bad_lines=count_lines(layout.bad_lines_file),
        mean_reward=totals.reward_sum / totals.prompts if totals.prompts else math.nan,
    )


def map_files(read: Callable[[Location], _Result], files: Iterable[Location]) -> Iterator[_Result]:
    """Read many small files, several at a time; results come in order and are not kept."""
    waiting = iter(files)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="output-reader") as pool:
        while batch := list(islice(waiting, _BATCH)):
            yield from pool.map(read, batch)
