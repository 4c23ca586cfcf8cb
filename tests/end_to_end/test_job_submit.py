"""`ray job submit` with the command of the README, on a cluster of this machine."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A running head node."""

    dashboard: str
    environment: dict[str, str]
    home: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    environment = {
        **os.environ,
        # The entry point's `python` is looked up where `ray start` ran.
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Workers that start before they are asked for are of no use to a job with files of its own.
        "RAY_prestart_worker_first_driver": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    port, dashboard_port = free_port(), free_port()
    # Ray's sockets live in its temporary folder, and the names of sockets must be short.
    session = tempfile.mkdtemp(prefix="r", dir="/tmp")
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", f"--temp-dir={session}"]
    # The agent takes jobs; its default port may be another cluster's.
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    command += ["--object-store-memory=200000000", "--disable-usage-stats", "--include-log-monitor=false"]
    log = (tmp_path / "ray.log").open("wb")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    dashboard = f"http://127.0.0.1:{dashboard_port}"
    try:
        wait_until_up(f"{dashboard}/api/version", process, tmp_path / "ray.log")
        yield Head(dashboard=dashboard, environment=environment, home=tmp_path)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()
        shutil.rmtree(session, ignore_errors=True)


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ray start ended early:\n{log.read_text(errors='replace')}"
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310
        except urllib.error.HTTPError as answer:
            if answer.code == 401:
                return
            raise
        except OSError:
            time.sleep(1)
        else:
            return
    pytest.fail(f"no answer from {url} after {seconds:.0f} s:\n{log.read_text(errors='replace')}")


def submit_when_ready(command: list[str], head: Head) -> subprocess.CompletedProcess[str]:
    """Submit; again while the head node's agent, which starts after its dashboard, is not there yet."""
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            command, cwd=ROOT, env=head.environment, capture_output=True, text=True, timeout=400, check=False
        )
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(3)


@pytest.mark.timeout(600)
def test_the_readme_command_leaves_its_output_in_the_home_folder(head: Head) -> None:
    pytest.importorskip("aiohttp", reason="job submission needs ray[default]")
    entry = ["python", "-m", "ttsvar_ray", "generate", "jobs/shapes_demo.yaml"]
    small = ["--set", "prompts.limit=2", "--set", "strategy.n=1", "--set", "cluster.workers=1"]
    submit = [str(BIN / "ray"), "job", "submit", "--address", head.dashboard, "--working-dir", "."]
    done = submit_when_ready([*submit, "--", *entry, *small], head)
    assert done.returncode == 0, done.stdout + done.stderr
    output = head.home / "outputs" / "shapes-demo"
    assert f"under ray job submit it is {output}" in done.stdout
    table = pq.read_table(output / "data")
    assert table.num_rows == 2
    assert all(image["bytes"] for image in table["image"].to_pylist())
    assert not (ROOT / "outputs" / "shapes-demo" / ".lock").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_job_stop_commits_what_is_whole_and_the_same_command_goes_on(head: Head) -> None:
    pytest.importorskip("aiohttp", reason="job submission needs ray[default]")
    ray = [str(BIN / "ray"), "job"]
    output = head.home / "outputs" / "stopped"
    entry = ["python", "-m", "ttsvar_ray", "generate", "jobs/shapes_demo.yaml", "--output", str(output)]
    small = ["--set", "prompts.limit=24", "--set", "cluster.workers=1", "--set", "output.rows_per_part=2"]
    small += ["--strategy", "best-of-n", "--n", "24"]  # Not done before `ray job stop` has started.
    grace = ["--runtime-env-json", '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}']
    submit = [*ray, "submit", "--address", head.dashboard, "--working-dir", ".", *grace]
    done = submit_when_ready([*submit, "--no-wait", "--submission-id", "first", "--", *entry, *small], head)
    assert done.returncode == 0, done.stdout + done.stderr
    deadline = time.monotonic() + 240
    while not any((output / "data").glob("part-*")):
        assert time.monotonic() < deadline, "no part was committed"
        time.sleep(0.2)

    def call(*words: str) -> str:
        command = [*ray, *words, "--address", head.dashboard, "first"]
        done = subprocess.run(
            command, env=head.environment, capture_output=True, text=True, timeout=200, check=True
        )
        return done.stdout + done.stderr

    call("stop")
    assert "was stopped" in call("status")
    assert "stopped by SIGTERM" in call("logs")
    committed = {path.name: path.read_bytes() for path in (output / "data").glob("part-*")}
    assert 0 < len(committed) < 12
    assert not (output / ".lock").exists()
    again = submit_when_ready([*submit, "--", *entry, *small], head)
    assert again.returncode == 0, again.stdout + again.stderr
    parts = {path.name: path.read_bytes() for path in (output / "data").glob("part-*")}
    assert len(parts) == 12
    assert all(parts[name] == content for name, content in committed.items())
    assert pq.read_table(output / "data", columns=["row"])["row"].to_pylist() == list(range(24))
