"""The memory of a run grows by the digest of an id a prompt, and not by prompts."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks import million_prompts
from ttsvar_ray.storage import location

SMALL, LARGE = 320, 1_920


def peak_of(count: int, folder: Path) -> tuple[int, int]:
    """Return the most bytes that Python, and that pyarrow, held while `count` prompts passed through."""
    folder.mkdir()
    million_prompts.write_prompts(folder / "p.jsonl", count)
    # As in a process of its own: what other tests left alive decides when Python looks for cycles.
    gc.collect()
    gc.freeze()
    tracemalloc.start()
    arrow_before = pa.total_allocated_bytes()
    million_prompts.pass_through(folder / "p.jsonl", folder / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    gc.unfreeze()
    return peak, pa.total_allocated_bytes() - arrow_before


def test_six_times_the_prompts_take_little_more_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(million_prompts, "ROWS_PER_PART", 80)
    monkeypatch.setattr(million_prompts, "OUT_AT_A_TIME", 64)
    monkeypatch.setattr(location, "_flush", lambda path: None)  # Slow, and nothing of memory.
    peak_of(SMALL, tmp_path / "warm")  # Imports and caches.
    small, _ = peak_of(SMALL, tmp_path / "small")
    large, arrow_left = peak_of(LARGE, tmp_path / "large")
    # A prompt that was kept would cost hundreds of bytes; its digest costs 16, names of parts a few.
    assert (large - small) / (LARGE - SMALL) < 40
    assert arrow_left < 1_000_000
