"""Workload files: what is written is read again, and what means nothing is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ttsvar_ray.coordination.settings import SegmentLoad, Workload
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.workload import read_workload, write_workload

WORKLOAD = Workload(
    segments=(
        SegmentLoad(tokens=21, held_bytes=11, running_bytes=30, batch_seconds=0.5, row_seconds=0.25),
        SegmentLoad(tokens=100, held_bytes=50, batch_seconds=1, row_seconds=0.125, replay_seconds=0.1),
    ),
    source="measured here",
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_workload(tmp_path / "w.json", WORKLOAD)
    assert read_workload(tmp_path / "w.json") == WORKLOAD


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": "other"}, "kind 'ttsvar-ray-workload'"),
        ({"format_version": 2}, "format_version: expected 1, got 2"),
        ({"segments": []}, "segments: expected one object per segment"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"segments": [{"tokens": 1, "row_seconds": 1}]}, r"segments\[0\].batch_seconds: missing"),
        (
            {"segments": [{"tokens": 1.5, "batch_seconds": 0, "row_seconds": float("inf")}]},
            r"segments\[0\].tokens: expected a whole number[\s\S]*row_seconds: expected a number",
        ),
        (
            {"segments": [{"tokens": 1, "batch_seconds": 0, "row_seconds": 0, "speed": 1}]},
            "speed: unknown key",
        ),
    ],
)
def test_what_means_nothing_is_refused(tmp_path: Path, change: dict[str, object], expected: str) -> None:
    path = tmp_path / "w.json"
    write_workload(path, WORKLOAD)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigurationError, match=expected):
        read_workload(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing\.json: cannot be read"):
        read_workload(tmp_path / "nothing.json")
