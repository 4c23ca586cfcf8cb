"""cluster_configs/local.yaml by `ray up`, over SSH to this machine: `pytest -m slurm`, as root, with sshd.

The SSH server and all it starts live in a PID namespace of their own: `ray stop`, which the file runs on
every node, ends every Ray process that it sees.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.fake_hub import serve
from tests.support.small_hub import SITECUSTOMIZE, small_hub, write_reward_sizes

PROGRAMS = ("sshd", "rsync", "ssh-keygen", "unshare")
SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(shutil.which(name, path=SEARCH_PATH) for name in PROGRAMS),
        reason="needs root, openssh-server and rsync",
    ),
]


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@dataclass(frozen=True)
class Machine:
    """This machine as the launcher sees it: another one, with a home folder of its own."""

    home: Path
    key: Path
    environment: dict[str, str]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if not all(is_free(port) for port in (22, 6379, 8265, 52365)):
        pytest.skip("something else listens at a port that the launcher files name")
    home = tmp_path / "home"
    (home / "small").mkdir(parents=True)
    (home / "small" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    # Its python3 is the one that made the environment of the tests.
    (home / ".bash_profile").write_text(f"export PATH={sys.base_prefix}/bin:$PATH\n")
    for name in ("key", "host"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True
        )
    # pip finds everything in place: what the lock names is in the environment of the tests.
    venv = home / "ttsvar_ray" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (venv / "bin" / "ray").write_text(
        f"#!{venv}/bin/python\nfrom ray.scripts.scripts import main\n\nmain()\n"
    )
    (venv / "bin" / "ray").chmod(0o755)
    hub = small_hub(tmp_path / "hub")
    Path("/run/sshd").mkdir(exist_ok=True)
    with serve(hub):
        told = {
            "HOME": str(home),
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(home / "small"),
            "RAY_worker_niceness": "0",
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
        }
        options = {
            "Port": "22",
            "ListenAddress": "127.0.0.1",
            "HostKey": str(tmp_path / "host"),
            "AuthorizedKeysFile": str(tmp_path / "key.pub"),
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "prohibit-password",
            "PidFile": str(tmp_path / "sshd.pid"),
            "Subsystem": "sftp internal-sftp",
            "SetEnv": " ".join(f"{name}={value}" for name, value in told.items()),
        }
        (tmp_path / "sshd.conf").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "/usr/sbin/sshd", "-D", "-e"]
        with (tmp_path / "sshd.log").open("wb") as log:
            server = subprocess.Popen([*command, "-f", str(tmp_path / "sshd.conf")], stderr=log)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "HOME": str(tmp_path / "mine"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
        }
        token = tmp_path / "mine" / ".ray" / "auth_token"
        token.parent.mkdir(parents=True)
        token.write_text(secrets.token_hex(32))
        try:
            yield Machine(home=home, key=tmp_path / "key", environment=environment)
        finally:
            server.kill()
            server.wait(timeout=30)


@pytest.mark.timeout(1800)
def test_the_local_cluster_comes_up_and_runs_its_command(machine: Machine, tmp_path: Path) -> None:
    text = (ROOT / "cluster_configs" / "local.yaml").read_text()
    config = yaml.safe_load(text)
    config["provider"] = {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(machine.key)}
    config |= {"min_workers": 0, "max_workers": 0}
    ours = tmp_path / "local.yaml"
    ours.write_text(yaml.safe_dump(config, sort_keys=False))

    def ray(*words: str, seconds: float = 900) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ray"), *words],
            cwd=ROOT,
            env=machine.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        print(done.stdout[-3000:])
        return done.stdout

    ray("up", "--yes", "--no-config-cache", str(ours))
    weights = machine.home / "ttsvar_ray" / "weights"
    assert (weights / "infinity_2b_reg.pth").is_file(), "the last set-up command fetched them"
    assert (machine.home / ".ray" / "auth_token").read_text() == Path(
        machine.environment["HOME"], ".ray", "auth_token"
    ).read_text()
    write_reward_sizes(weights / "image-reward")
    header = re.sub(r"\\\n# *", "", text[: text.index("cluster_name:")])
    (entry,) = re.findall(r"ray job submit --address (\S+) -- bash -c '([^']*)'", header)
    on_a_cpu = ("model.device=cpu", "model.dtype=float32", "cluster.gpus_per_worker=0", "prompts.limit=1")
    on_a_cpu += ("cluster.cpus_per_worker=1", "cluster.workers=1", "strategy.n=1")
    command = entry[1].replace("/data/", f"{tmp_path}/data/")
    command = " ".join([command, *(f"--set {setting}" for setting in on_a_cpu)])
    # The agent that takes jobs starts after the dashboard.
    deadline = time.monotonic() + 180
    while is_free(8265) or is_free(52365):
        assert time.monotonic() < deadline, "no agent takes jobs"
        time.sleep(1)
    time.sleep(10)
    printed = ray("job", "submit", "--address", entry[0], "--", "bash", "-c", command)
    assert "succeeded" in printed
    assert pq.read_table(tmp_path / "data" / "outputs" / "infinity-2b" / "data").num_rows == 1
    refused = {**machine.environment, "RAY_AUTH_TOKEN": "another"}
    stranger = subprocess.run(
        [str(Path(sys.executable).parent / "ray"), "job", "list", "--address", entry[0]],
        env=refused,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert stranger.returncode != 0, "who has another token may not even look"
