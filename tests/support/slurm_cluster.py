"""A SLURM cluster of one node on this machine: munged, slurmctld and slurmd of the system's packages."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")


def is_here() -> bool:
    """Whether SLURM is installed, and may be started by this user."""
    return os.geteuid() == 0 and all(shutil.which(name, path=_search_path()) for name in PROGRAMS)


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster: `environment` is what its commands need."""

    environment: dict[str, str]

    def call(self, *command: str) -> str:
        """Run one of SLURM's commands and return what it prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        """Return what SLURM knows of a job."""
        words = self.call("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, *states: str, seconds: float) -> dict[str, str]:
        """Wait until a job is in one of some states."""
        deadline = time.monotonic() + seconds
        while True:
            known = self.state(job)
            if known["JobState"] in states:
                return known
            assert time.monotonic() < deadline, f"job {job} is {known['JobState']}, not {states}"
            time.sleep(1)


@contextlib.contextmanager
def slurm_cluster(folder: Path, *, cpus: int) -> Iterator[SlurmCluster]:
    """Run the daemons, with everything they write in `folder`.

    Args:
        folder: for this cluster alone; its path must be short enough for a socket's name.
        cpus: that the node says it has.
    """
    host = socket.gethostname().partition(".")[0]
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    munge_socket = folder / "munge.socket"
    (folder / "slurm.conf").write_text(
        "\n".join(
            [
                "ClusterName=test",
                f"SlurmctldHost={host}",
                f"SlurmctldPort={_free_port()}",
                f"SlurmdPort={_free_port()}",
                "SlurmUser=root",
                "AuthType=auth/munge",
                f"AuthInfo=socket={munge_socket}",
                f"StateSaveLocation={folder}/state",
                f"SlurmdSpoolDir={folder}/spool",
                f"SlurmctldPidFile={folder}/slurmctld.pid",
                f"SlurmdPidFile={folder}/slurmd.pid",
                f"SlurmctldLogFile={folder}/slurmctld.log",
                f"SlurmdLogFile={folder}/slurmd.log",
                "ProctrackType=proctrack/linuxproc",
                "TaskPlugin=task/none",
                "JobAcctGatherType=jobacct_gather/none",
                "SelectType=select/cons_tres",
                "SelectTypeParameters=CR_Core",
                "GresTypes=gpu",
                "ReturnToService=2",
                "MpiDefault=none",
                "SlurmdParameters=config_overrides",
                "SwitchType=switch/none",
                f"NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN",
                f"PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP",
            ]
        )
        + "\n"
    )
    for name in ("state", "spool"):
        (folder / name).mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RAY_"))},
        "PATH": _search_path(),
        "SLURM_CONF": str(folder / "slurm.conf"),
        # Ray's workers would give way to whatever else runs here.
        "RAY_worker_niceness": "0",
    }
    munged = ["munged", "--foreground", "--force", f"--socket={munge_socket}", f"--key-file={key}"]
    munged += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log"]
    munged += [f"--seed-file={folder}/munged.seed"]
    processes = []
    try:
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            with (folder / f"{command[0]}.out").open("wb") as log:
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
            time.sleep(1)
        cluster = SlurmCluster(environment)
        deadline = time.monotonic() + 60
        while (
            "idle"
            not in subprocess.run(
                ["sinfo", "-h", "-o", "%T"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            ).stdout.split()
        ):
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text(errors="replace")[-3000:]
            time.sleep(1)
        yield cluster
        cluster.call("scancel", "--user=root")
        time.sleep(2)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)


def _search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
