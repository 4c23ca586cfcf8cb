"""An output folder is continued by the same run, refused to any other, written by one at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from outcome_samples import CONTEXT, result

from ttsvar_ray.config import load_config
from ttsvar_ray.dataset import (
    OutputLayout,
    OutputLock,
    RunManifest,
    check_output,
    committed_chunks,
    open_output,
    read_manifest,
    write_chunk,
)
from ttsvar_ray.errors import OutputError
from ttsvar_ray.types import ColumnType


def manifest(*overrides: str, digest: str = "a" * 64, count: int = 10) -> RunManifest:
    config = load_config(None, overrides, needs_files=False)
    return RunManifest(
        config=config.resolved(),
        content=config.content(),
        config_digest=config.digest(),
        prompts_path="p.txt",
        prompts_digest=digest,
        prompt_count=count,
        bad_lines=1,
        column_types={"tag": ColumnType.JSON},
        seed=config.seed,
    )


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path / "new" / "out")
    written = open_output(layout, manifest("strategy.n=2"))
    assert read_manifest(layout) == written
    assert written.versions["python"]
    assert "numpy" in written.versions


def test_the_same_run_goes_on_with_its_first_manifest(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    first = dataclasses.replace(manifest(), created="2026-01-01T00:00:00+00:00")
    open_output(layout, first)
    (layout.data_folder / ".part-00000.parquet.1234.tmp").write_bytes(b"half")
    assert open_output(layout, manifest("cluster.workers=3", "engine.micro_batch_rows=4")) == first
    assert list(layout.data_folder.iterdir()) == []


def test_other_settings_are_refused_with_what_differs(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    open_output(layout, manifest("strategy.n=2"))
    before = layout.run_file.read_bytes()
    with pytest.raises(OutputError) as caught:
        open_output(layout, manifest("strategy.n=8", "seed=5"))
    message = str(caught.value)
    assert "strategy.n: 2 in the folder, 8 now" in message
    assert "seed: 0 in the folder, 5 now" in message
    assert "strategy.name" not in message
    assert "Choose another --output folder" in message
    assert layout.run_file.read_bytes() == before


def test_another_prompt_set_is_refused(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    open_output(layout, manifest())
    with pytest.raises(OutputError, match=r"prompts: 10 of p.txt \(digest aaaa.* in the folder, 11 of p.txt"):
        check_output(layout, manifest(digest="b" * 64, count=11))


def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match=r"it holds thesis\.tex"):
        check_output(OutputLayout(tmp_path), manifest())
    with pytest.raises(OutputError, match="got a file"):
        check_output(OutputLayout(tmp_path / "thesis.tex"), manifest())


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 99}'])
def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(OutputError, match=r"run\.json: not a manifest"):
        check_output(OutputLayout(tmp_path), manifest())


def test_parts_on_disk_are_the_truth_about_what_is_done(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    open_output(layout, manifest())
    assert committed_chunks(layout) == frozenset()
    for chunk in (3, 0):
        write_chunk(
            layout, chunk, rows=range(chunk, chunk + 1), finished=[result(chunk)], failed=[], context=CONTEXT
        )
    (layout.data_folder / ".part-00007.parquet.x.tmp").write_bytes(b"half")
    assert committed_chunks(layout) == {0, 3}
    layout.data_part(3).write_bytes(layout.data_part(3).read_bytes()[:-10])
    with pytest.raises(OutputError, match=r"part-00003\.parquet: not a whole Parquet file"):
        committed_chunks(layout)


def test_a_live_run_keeps_others_out_and_leaves_no_lock(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    with OutputLock(layout) as lock:
        with pytest.raises(OutputError, match=f"process {os.getpid()} on {socket.gethostname()}"):
            OutputLock(layout).__enter__()
        lock.check()
    assert not layout.lock_file.exists()
    with OutputLock(layout):
        pass


def test_the_lock_of_a_dead_process_is_taken_over_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = OutputLayout(tmp_path)
    finished = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    owner = {"token": "t", "host": socket.gethostname(), "pid": int(finished.stdout), "started": "earlier"}
    layout.lock_file.write_text(json.dumps(owner))
    with OutputLock(layout):
        assert "that process is gone" in caplog.text


@pytest.mark.parametrize("content", ['{"host": "elsewhere", "pid": 1, "token": "t"}', "{torn"])
def test_a_silent_lock_is_taken_over_a_beating_one_is_not(tmp_path: Path, content: str) -> None:
    layout = OutputLayout(tmp_path)
    layout.lock_file.write_text(content)
    with pytest.raises(OutputError, match="another run is writing here"):
        OutputLock(layout).__enter__()
    silent = time.time() - 61
    os.utime(layout.lock_file, (silent, silent))
    with OutputLock(layout):
        pass


def test_the_heart_beats_and_a_lost_lock_is_noticed(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    with OutputLock(layout, heartbeat_s=0.02) as lock:
        os.utime(layout.lock_file, (1, 1))
        _wait_until(lambda: layout.lock_file.stat().st_mtime > 1)
        layout.lock_file.write_text('{"token": "another"}')
        _wait_until(lambda: _fails(lock))
    assert layout.lock_file.exists(), "the other run's lock must stay"


def _fails(lock: OutputLock) -> bool:
    try:
        lock.check()
    except OutputError:
        return True
    return False


def _wait_until(condition: object, limit_s: float = 10.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
