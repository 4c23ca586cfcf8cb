"""cluster_configs/slurm.sh on a SLURM cluster of this machine: `pytest -m slurm`, as root, with slurm-wlm."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.slurm_cluster import SlurmCluster, is_here, slurm_cluster

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        not is_here(), reason="needs root and Debian's slurmctld, slurmd, slurm-client, munge"
    ),
]

ROOT = Path(__file__).resolve().parents[2]
HERE = ("--nodes=1", "--gpus-per-node=0", "--cpus-per-task=2")
"""What this machine has in place of eight GPUs a node."""
MANY = 5000


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    # Names of sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    try:
        with slurm_cluster(folder, cpus=2) as cluster:
            cluster.environment["PYTHONPATH"] = str(ROOT)
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder as the script finds it: the repository, with its environment in .venv."""
    for name in ("jobs", "cluster_configs", "ttsvar_ray"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def submit(slurm: SlurmCluster, checkout: Path, *options: str, settings: tuple[str, ...]) -> str:
    """Hand the script to SLURM as its header says; return the number of the job."""
    job = ["jobs/shapes_demo.yaml", "--output", str(checkout / "out")]
    job += [word for setting in settings for word in ("--set", setting)]
    command = ["sbatch", f"--chdir={checkout}", *HERE, *options, "cluster_configs/slurm.sh", *job]
    # SLURM_SUBMIT_DIR is where sbatch ran.
    printed = slurm.call("env", "-C", str(checkout), *command)
    found = re.fullmatch(r"Submitted batch job (\d+)\n", printed)
    assert found, printed
    return found[1]


def logs(checkout: Path) -> str:
    text = "".join(path.read_text(errors="replace") for path in sorted(checkout.glob("ttsvar-*.log")))
    print(text)
    return text


def rows(parts: Path) -> list[int]:
    """Return the rows of a part, or of all parts of a folder."""
    files = sorted(parts.glob("part-*")) if parts.is_dir() else [parts]
    return [row for part in files for row in pq.read_table(part)["row"].to_pylist()]


@pytest.mark.timeout(900)
def test_the_script_runs_a_job(slurm: SlurmCluster, checkout: Path) -> None:
    job = submit(slurm, checkout, settings=("prompts.limit=4", "strategy.n=1", "output.rows_per_part=2"))
    ended = slurm.wait(job, "COMPLETED", "FAILED", "TIMEOUT", seconds=600)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), logs(checkout)
    assert "generate ended with exit code 0" in logs(checkout)
    assert rows(checkout / "out" / "data") == [0, 1, 2, 3]


@pytest.mark.timeout(900)
def test_bad_settings_end_a_job_for_good(slurm: SlurmCluster, checkout: Path) -> None:
    job = submit(slurm, checkout, settings=("strategy.n=0",))
    ended = slurm.wait(job, "COMPLETED", "FAILED", "TIMEOUT", seconds=600)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), logs(checkout)
    assert "strategy.n: expected at least 1" in logs(checkout)


@pytest.mark.timeout(1200)
def test_an_array_makes_a_shard_each(slurm: SlurmCluster, checkout: Path) -> None:
    small = ("prompts.limit=5", "strategy.n=1", "output.rows_per_part=2")
    job = submit(slurm, checkout, "--array=0-1", settings=small)
    for task in range(2):
        ended = slurm.wait(f"{job}_{task}", "COMPLETED", "FAILED", "TIMEOUT", seconds=600)
        assert ended["JobState"] == "COMPLETED", logs(checkout)
    assert "generate ended with exit code 0" in logs(checkout)
    assert rows(checkout / "out" / "shard-0-of-2" / "data") == [0, 1, 4]
    assert rows(checkout / "out" / "shard-1-of-2" / "data") == [2, 3]


@pytest.mark.timeout(1800)
def test_a_job_at_its_time_limit_commits_and_goes_back_into_the_queue(
    slurm: SlurmCluster, checkout: Path
) -> None:
    """After five minutes some prompts are done, whatever the machine, and of so many not all."""
    prompts = checkout / "many.txt"
    prompts.write_text("".join(f"a red ring, number {number}\n" for number in range(MANY)))
    settings = ("output.rows_per_part=1", "cluster.workers=1", f"prompts.path={prompts}")
    job = submit(slurm, checkout, "--time=7", settings=settings)
    slurm.wait(job, "RUNNING", seconds=60)
    waiting = slurm.wait(job, "PENDING", "COMPLETED", "FAILED", "TIMEOUT", seconds=500)
    text = logs(checkout)
    assert (waiting["JobState"], waiting["Restarts"]) == ("PENDING", "1"), text
    assert "stopped by SIGTERM" in text and "generate ended with exit code 75" in text
    assert "the time limit is near: back into the queue" in text
    committed = {path.name: path.read_bytes() for path in (checkout / "out" / "data").glob("part-*")}
    assert 0 < len(committed) < MANY
    slurm.call("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    slurm.wait(job, "RUNNING", seconds=300)
    deadline = time.monotonic() + 800
    while len(parts := sorted((checkout / "out" / "data").glob("part-*"))) <= len(committed):
        assert time.monotonic() < deadline, logs(checkout)
        time.sleep(1)
    slurm.call("scancel", job)
    ended = slurm.wait(job, "CANCELLED", "PENDING", "COMPLETED", "FAILED", seconds=120)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "1"), (
        "who cancels a job does not want it back"
    )
    assert all((checkout / "out" / "data" / name).read_bytes() == made for name, made in committed.items())
    assert [row for part in parts for row in rows(part)] == list(range(len(parts)))
