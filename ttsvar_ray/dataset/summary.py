"""What an output folder holds, counted from the files alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ttsvar_ray.dataset.layout import OutputLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSummary:
    """Totals over all sittings of a run.

    Attributes:
        chunks: parts on disk.
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
    """Count what is on disk, reading no image."""
    parts = layout.data_parts()
    prompts, images, reward_sum = 0, 0, 0.0
    for path in parts.values():
        table = pq.read_table(path, columns=["image_rank", "reward"])
        best = table.filter(pc.equal(table["image_rank"], 0))["reward"]
        images += table.num_rows
        prompts += len(best)
        reward_sum += pc.sum(best).as_py() or 0.0
    return OutputSummary(
        chunks=len(parts),
        prompts=prompts,
        images=images,
        failed=sum(_count_lines(path) for path in layout.failed_parts()),
        bad_lines=_count_lines(layout.bad_lines_file),
        mean_reward=reward_sum / prompts if prompts else math.nan,
    )


def _count_lines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except FileNotFoundError:
        return 0
