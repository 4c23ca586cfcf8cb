"""The memory of a run does not grow with its prompt set."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks import million_prompts
from ttsvar_ray.prompts import identity
from ttsvar_ray.prompts.external_sort import ExternalSort
from ttsvar_ray.storage import location

SMALL, LARGE = 320, 1_920


def peak_of(count: int, folder: Path) -> tuple[int, int]:
    """Return the most bytes that Python, and that pyarrow, held while `count` prompts passed through."""
    folder.mkdir()
    million_prompts.write_prompts(folder / "p.jsonl", count)
    gc.collect()
    tracemalloc.start()
    arrow_before = pa.total_allocated_bytes()
    million_prompts.pass_through(folder / "p.jsonl", folder / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak, pa.total_allocated_bytes() - arrow_before


def test_six_times_the_prompts_take_the_same_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is kept in memory up to a bound is bound low here: the larger set goes to disk, as millions do.
    capacity = 128
    monkeypatch.setattr(identity.Ordinals.__init__, "__defaults__", (capacity,))
    monkeypatch.setattr(ExternalSort.__init__, "__defaults__", (capacity,))
    monkeypatch.setattr(million_prompts, "ROWS_PER_PART", 80)
    monkeypatch.setattr(million_prompts, "OUT_AT_A_TIME", 64)
    monkeypatch.setattr(location, "_flush", lambda path: None)  # Slow, and nothing of memory.
    peak_of(SMALL, tmp_path / "warm")  # Imports and caches.
    small, _ = peak_of(SMALL, tmp_path / "small")
    large, arrow_left = peak_of(LARGE, tmp_path / "large")
    # A prompt that was kept would cost hundreds of bytes; names of parts cost a few bytes a prompt.
    assert (large - small) / (LARGE - SMALL) < 30
    assert arrow_left < 1_000_000
