"""`ttsvar-ray doctor`: one real run, and each check on machines that are not this one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ttsvar_ray.cli.doctor import can_run, output_folder, show, verdict
from ttsvar_ray.cli.doctor.checks import (
    Finding,
    Mark,
    check_disk,
    check_ray,
    cpu_limit,
    memory_limit,
    run_check,
)
from ttsvar_ray.cli.doctor.weights import check_models, check_networks
from ttsvar_ray.config import load_config
from ttsvar_ray.features.registry import EXTRACTORS
from ttsvar_ray.models.description import ModelChoice
from ttsvar_ray.rewards.registry import REWARDS


def test_this_machine_can_run_the_built_in_model(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "ttsvar_ray", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ready"]
    found = {finding["name"]: finding for finding in report["findings"]}
    assert "drew 48x48 pixels" in found["shapes"]["text"]
    assert "offline mode is on" in found["hub"]["text"]
    assert found["infinity-2b"]["mark"] == "missing"
    assert "infinity_2b_reg.pth infinity_vae_d32reg.pth" in found["infinity-2b"]["command"]
    assert {"python", "packages", "memory", "output", "cluster", "image-reward"} <= found.keys()


def test_weights_in_the_cache_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (before,) = check_models([ModelChoice(name="infinity-2b")])
    assert (before.mark, len((before.command or "").splitlines())) == (Mark.MISSING, 2)
    for repository, files in (
        ("models--FoundationVision--Infinity", ("infinity_2b_reg.pth", "infinity_vae_d32reg.pth")),
        ("models--google--flan-t5-xl", ("model.safetensors", "config.json")),
    ):
        snapshot = tmp_path / repository / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (tmp_path / repository / "refs").mkdir()
        (tmp_path / repository / "refs" / "main").write_text("abc")
        for name in files:
            (snapshot / name).write_bytes(b"12345")
    (after,) = check_models([ModelChoice(name="infinity-2b")])
    assert (after.mark, after.text, after.command) == (Mark.OK, "complete, 20 B", None)


def test_each_network_can_be_fetched(tmp_path: Path) -> None:
    folders = {entry.name: entry.weights.files for entry in REWARDS.values() if entry.weights.files}
    folders |= {entry.network: entry.weights.files for entry in EXTRACTORS.values()}
    assert [finding.name for finding in check_networks(tmp_path)] == list(folders)
    for finding in check_networks(tmp_path):
        assert finding.mark is Mark.MISSING
        for files in folders[finding.name]:
            assert files.command(str(tmp_path / finding.name)) in (finding.command or "").splitlines()
            for name in files.names:
                file = tmp_path / finding.name / files.folder / name
                assert str(file.parent) in (finding.command or "")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"")
    found = {finding.name: finding for finding in check_networks(tmp_path)}
    assert all(finding.mark is Mark.OK for finding in found.values())
    assert "head AGPL-3.0" in found["aesthetic-v2.5"].text
    assert f"features.backbone={tmp_path / 'dinov2'};" in found["dinov2"].text
    assert "inception_v3_google-0cc3c7bd.pth;" in found["inception"].text


def test_limits_of_containers(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None
    assert cpu_limit(tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert memory_limit(tmp_path) is None
    assert cpu_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("8000000\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert memory_limit(tmp_path) == 8_000_000
    assert cpu_limit(tmp_path) == 1.5


def test_a_full_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    (finding,) = check_disk({"output": tmp_path / "not" / "yet"})
    assert finding.mark is Mark.WARN


@pytest.mark.parametrize(
    ("environment", "marks"),
    [
        ({}, ("ok", "ok")),
        ({"RAY_ADDRESS": "auto"}, ("ok", "ok")),
        ({"RAY_ADDRESS": "127.0.0.1:1"}, ("warn", "ok")),
        ({"RAY_ADDRESS": "auto", "RAY_AUTH_TOKEN": "x"}, ("ok", "warn")),
        ({"RAY_ADDRESS": "auto", "RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "disabled"}, ("ok", "ok")),
        ({"RAY_AUTH_MODE": "token"}, ("ok", "warn")),
    ],
)
def test_ray_as_its_environment_has_it(
    environment: dict[str, str], marks: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tuple(finding.mark.value for finding in check_ray()) == marks


def test_one_broken_check_is_one_finding() -> None:
    def breaks() -> list[Finding]:
        raise RuntimeError("no such thing")

    (finding,) = run_check("machine", breaks, otherwise=Mark.WARN)
    assert (finding.mark, finding.text) == (Mark.WARN, "RuntimeError: no such thing")


@pytest.mark.parametrize("terminal", [True, False])
def test_the_screen_shows_commands(terminal: bool) -> None:
    findings = [
        Finding(area="a", name="one", mark=Mark.OK, text="fine"),
        Finding(area="a", name="two", mark=Mark.MISSING, text="not here", command="get [one]\nget two"),
        Finding(area="b", name="three", mark=Mark.BROKEN, text="bad", command="mend"),
    ]
    console = Console(force_terminal=terminal, width=100, record=True, file=io.StringIO())
    show(findings, console)
    shown = console.export_text()
    for words in ("fine", "get [one]", "get two", "bad", "mend"):
        assert words in shown
    assert not can_run(findings)
    assert verdict(findings).startswith("not ready: 1 broken; 0 to look at, 1 missing")
    assert can_run(findings[:2])


def test_of_an_object_store_the_disk_that_matters_is_where_parts_are_made() -> None:
    config = load_config(None, ["output.path=s3://bucket/run"], needs_files=False)
    assert list(output_folder(config)) == ["parts before upload"]
    config = load_config(None, ["output.path=out"], needs_files=False)
    assert output_folder(config) == {"output": Path("out")}
