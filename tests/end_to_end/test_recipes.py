"""The commands of the recipes are run as they stand, against small files in the published formats.

Only paths are replaced (the volume, the repository in the image, the bucket), and what needs a GPU is set to
a CPU at the end of the command.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from tests.support.fake_hub import FakeHub, serve
from tests.support.small_hub import SITECUSTOMIZE, small_hub, write_reward_sizes
from ttsvar_ray.cli.app import app
from ttsvar_ray.config.load import load_config
from ttsvar_ray.job.resolved import resolve

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "cluster_configs"
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))

ON_A_CPU = (
    "model.device=cpu",
    "model.dtype=float32",
    "cluster.gpus_per_worker=0",
    "cluster.cpus_per_worker=1",
    "cluster.workers=1",
    "prompts.limit=1",
    "strategy.n=1",
)


@dataclass(frozen=True)
class Site:
    """A machine with a volume at `data`, and a hub."""

    data: Path
    hub: FakeHub
    environment: dict[str, str]

    def shell(self, command: str, *, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command of a recipe: /data is the volume, and the image's repository is this one."""
        here = command.replace("/home/ray/ttsvar_ray", str(ROOT)).replace("/data", str(self.data))
        return subprocess.run(
            ["bash", "-c", here],
            cwd=cwd or self.data,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    (folder / "small").mkdir()
    (folder / "small" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    (folder / "data").mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HF_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{folder / 'small'}{os.pathsep}{ROOT}",
        "HF_HOME": str(folder / "huggingface"),
        "HF_HUB_DISABLE_XET": "1",
        "RAY_worker_niceness": "0",
    }
    return Site(data=folder / "data", hub=small_hub(folder / "hub"), environment=environment)


@pytest.fixture(scope="module")
def staged(site: Site) -> Site:
    """The volume after the fetch job of Kubernetes."""
    _, job = yaml.safe_load_all((CONFIGS / "fetch.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["bash", "-c"]
    with serve(site.hub):
        command = f"export HF_ENDPOINT={site.hub.endpoint}; {container['args'][0]}"
        done = site.shell(command)
        assert done.returncode == 0, done.stdout + done.stderr
        sent = len(site.hub.downloads())
        again = site.shell(command)
        assert again.returncode == 0 and again.stdout.count("there  ") == 5, again.stdout + again.stderr
        assert len(site.hub.downloads()) == sent, "what is there is not fetched again"
    noted = json.loads((site.data / "weights" / ".fetched.json").read_text())
    assert noted == {"FoundationVision/Infinity": {"commit": "1" * 40, "whole": True}}
    write_reward_sizes(site.data / "weights" / "image-reward")
    return site


@pytest.mark.timeout(900)
def test_the_ray_job_runs_on_what_its_fetch_job_brought(staged: Site) -> None:
    spec = yaml.safe_load((CONFIGS / "rayjob.yaml").read_text())["spec"]
    settings = " ".join(f"--set {setting}" for setting in ON_A_CPU)
    done = staged.shell(f"{spec['entrypoint']} {settings}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exit code 2" not in done.stdout, done.stderr
    (row,) = pq.read_table(staged.data / "outputs" / "infinity-2b" / "data").to_pylist()
    assert (row["width"], row["height"], row["prompt_id"]) == (1024, 1024, "two-things")
    assert (staged.data / "outputs" / "infinity-2b.exit-code").read_text() == "0\n"
    assert len(row["reward_history"]) == 3, "two resamplings and the end"


@pytest.mark.timeout(300)
def test_settings_that_cannot_work_bring_up_no_second_cluster(site: Site) -> None:
    spec = yaml.safe_load((CONFIGS / "rayjob.yaml").read_text())["spec"]
    done = site.shell(f"{spec['entrypoint']} --set strategy.n=0")
    assert done.returncode == 0, "backoffLimit counts anything else as a reason for a new cluster"
    assert "strategy.n: expected at least 1" in done.stderr
    assert "run_job: exit code 2: nothing was generated" in done.stdout
    assert (site.data / "outputs" / "infinity-2b.exit-code").read_text() == "2\n"


@pytest.mark.parametrize(
    ("code", "ends", "says"), [(0, 0, ""), (1, 1, ""), (2, 0, "code 2"), (3, 0, "code 3"), (75, 75, "")]
)
def test_what_a_supervisor_sees_of_each_exit_code(tmp_path: Path, code: int, ends: int, says: str) -> None:
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", str(CONFIGS / "run_job.sh"), "results/code", "a b.yaml", "--workers", "4"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (ends, "")
    assert done.stdout.startswith("-m ttsvar_ray generate a b.yaml --workers 4\n")
    assert says in done.stdout and ("run_job" in done.stdout) == bool(says)
    assert (tmp_path / "results" / "code").read_text() == f"{code}\n"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "local.yaml"])
def test_the_commands_of_the_launcher_files_run_on_what_their_set_up_brought(staged: Site, name: str) -> None:
    text = (CONFIGS / name).read_text()
    fetch = yaml.safe_load(text)["setup_commands"][-1]
    assert fetch == "cd ~/ttsvar_ray && .venv/bin/python -m ttsvar_ray fetch jobs/infinity_2b.yaml"
    header = re.sub(r"\\\n# *", "", text[: text.index("cluster_name:")])
    (entry,) = re.findall(r"ray job submit --address http://127.0.0.1:8265 -- bash -c '([^']*)'", header)
    # ~/ttsvar_ray: the repository, with the weights that the last set-up command fetched into it.
    home = staged.data / "home"
    checkout = home / "ttsvar_ray"
    if not checkout.exists():
        checkout.mkdir(parents=True)
        for part in ("jobs", "ttsvar_ray"):
            (checkout / part).symlink_to(ROOT / part)
        (checkout / "weights").symlink_to(staged.data / "weights")
        (checkout / ".venv").symlink_to(sys.prefix)
    again = staged.shell(f"export HOME=/data/home; {fetch}", cwd=home)
    assert again.returncode == 0 and again.stdout.count("there  ") == 5, again.stdout + again.stderr
    bucket = staged.data / "buckets" / name
    entry = re.sub(r"(s3|gs)://YOUR-BUCKET/|/data/outputs/", f"/data/buckets/{name}/", entry)
    settings = " ".join(f"--set {setting}" for setting in ON_A_CPU)
    done = staged.shell(f"export HOME=/data/home; {entry} {settings}", cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert pq.read_table(bucket / "infinity-2b" / "data").num_rows == 1


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_every_job_has_a_plan_and_prompts_that_exist(job: Path) -> None:
    config = load_config(job)
    assert resolve(config).plan.selections
    if "://" not in config.prompts.path:
        assert (ROOT / config.prompts.path).is_file()
    if config.model.name != "shapes":
        assert f"generate jobs/{job.name}" in job.read_text()


@pytest.mark.parametrize("job", [job for job in JOBS if "infinity" in job.stem], ids=lambda path: path.stem)
def test_fetch_names_everything_that_a_job_reads(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ttsvar_ray.cli.fetch import downloads

    monkeypatch.chdir(ROOT)
    found = {(download.source, str(download.folder)) for download in downloads(load_config(job))}
    assert found == {
        ("FoundationVision/Infinity", "weights"),
        ("google/flan-t5-xl", "weights/flan-t5-xl"),
        ("THUDM/ImageReward", "weights/image-reward"),
        ("google-bert/bert-base-uncased", "weights/image-reward"),
        ("facebook/dinov2-with-registers-large", "weights/dinov2"),
    }


def test_a_machine_of_24_gb_holds_one_prompt_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = CliRunner().invoke(app, ["plan", "jobs/infinity_2b_24gb.yaml"])
    assert shown.exit_code == 0, shown.output
    (row,) = re.findall(r"^ *24 GB +[\d.]+ GB +(\d+) +(\d+) +([\d ]+)$", shown.stdout, flags=re.MULTILINE)
    assert row[:2] == ("1", "1")
    assert len(row[2].split()) == 5, "rows of five segments, found and not given"
