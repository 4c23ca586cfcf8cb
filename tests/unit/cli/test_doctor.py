"""`ttsvar-ray doctor`: one real run, and each check on machines that are not this one."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from ttsvar_ray.cli.app import app
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
from ttsvar_ray.cli.doctor.job import (
    check_choice,
    check_device,
    check_model,
    check_own_code,
    check_prompts,
    check_scores,
    needs_of,
)
from ttsvar_ray.cli.doctor.job import check_networks as check_networks_of_job
from ttsvar_ray.cli.doctor.weights import check_models, check_networks
from ttsvar_ray.cli.fetch import Download
from ttsvar_ray.config.load import load_config
from ttsvar_ray.features.registry import EXTRACTORS
from ttsvar_ray.models.description import ModelChoice
from ttsvar_ray.models.registry import describe_model
from ttsvar_ray.rewards.protocol import PlainReward
from ttsvar_ray.rewards.registry import REWARDS, build_reward
from ttsvar_ray.types import Float32Array, UInt8Array


def test_this_machine_can_run_the_built_in_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 0, done.output
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
            folder = tmp_path / finding.name / files.folder
            wanted = Download(source=files.source, patterns=files.names, folder=folder)
            assert wanted.command() in (finding.command or "").splitlines()
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
def test_the_screen_shows_what_is_missing_and_folds_no_command(terminal: bool) -> None:
    long = "hf download google/flan-t5-xl " + " ".join(f"--include 'file-{number}'" for number in range(9))
    findings = [
        Finding(area="a", name="one", mark=Mark.OK, text="fine"),
        Finding(area="job", name="two", mark=Mark.MISSING, text="not here; licence: AGPL-3.0", command=long),
        Finding(area="b", name="three", mark=Mark.BROKEN, text="bad", command="mend [it]"),
    ]
    console = Console(force_terminal=terminal, width=60, record=True, file=io.StringIO())
    for finding in findings:
        show(finding, console)
    shown = console.export_text().splitlines()
    assert f"  {long}" in shown
    assert "  mend [it]" in shown
    assert any("not here; licence: AGPL-3.0" in line for line in shown)
    assert not can_run(findings, job=False)
    assert verdict(findings, job=True).startswith(
        "not ready: the job needs two, three; 0 to look at, 1 missing"
    )
    assert can_run(findings[:2], job=False)
    assert not can_run(findings[:2], job=True)


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p.txt").write_text("a ring\n")
    (tmp_path / "job.yaml").write_text(
        "model: {name: infinity-2b, path: weights}\n"
        "prompts: {path: p.txt}\n"
        "reward: {name: aesthetic-v2.5, path: weights/aesthetic}\n"
        "features: {backbone: weights/dinov2}\n"
    )
    return tmp_path / "job.yaml"


def found_for(job_file: Path, *settings: str) -> dict[str, Finding]:
    needs = needs_of(load_config(job_file, settings, needs_files=False))
    config = needs.job.config
    checks = (check_prompts(config), check_model(needs), check_networks_of_job(needs), check_choice(needs))
    return {finding.name: finding for findings in checks for finding in findings}


def test_a_job_names_exactly_what_it_misses_and_where_it_looks(job_file: Path) -> None:
    found = found_for(job_file)
    assert list(found) == [
        *("prompts", "transformer", "tokenizer", "text encoder"),
        *("reward aesthetic-v2.5", "features"),
    ]
    commands = {name: (finding.command or "").splitlines() for name, finding in found.items()}
    infinity = "hf download FoundationVision/Infinity"
    assert commands["transformer"] == [f"{infinity} infinity_2b_reg.pth --local-dir weights"]
    assert commands["tokenizer"] == [f"{infinity} infinity_vae_d32reg.pth --local-dir weights"]
    assert commands["text encoder"][0].endswith("--local-dir weights/flan-t5-xl")
    head, siglip = commands["reward aesthetic-v2.5"]
    assert head.startswith("curl -L --create-dirs -o weights/aesthetic/aesthetic_predictor_v2_5.pth https://")
    assert siglip.endswith("--local-dir weights/aesthetic/siglip")
    assert "head AGPL-3.0" in found["reward aesthetic-v2.5"].text
    dinov2 = "hf download facebook/dinov2-with-registers-large config.json model.safetensors"
    assert commands["features"] == [f"{dinov2} --local-dir weights/dinov2"]


def test_what_the_commands_bring_is_found(job_file: Path) -> None:
    for finding in found_for(job_file).values():
        for line in (finding.command or "").splitlines():
            words = shlex.split(line)
            if words[0] == "curl":
                files = [Path(words[words.index("-o") + 1])]
            else:
                folder = Path(words[words.index("--local-dir") + 1])
                names = [word.replace("*", "model") for word in words[3:-2] if word != "--include"]
                files = [folder / name for name in names]
            for file in files:
                file.parent.mkdir(parents=True, exist_ok=True)
                if file.suffix == ".pth":
                    torch.save({"other": torch.zeros(1)}, file)
                else:
                    file.write_bytes(b"x")
    assert {finding.mark for finding in found_for(job_file).values()} == {Mark.OK}


def save_tokenizer(file: Path, channels: int) -> None:
    file.parent.mkdir(exist_ok=True)
    torch.save({"decoder.conv_in.conv.weight": torch.zeros(512, channels, 3, 3)}, file)


def test_wrong_files_are_named(job_file: Path) -> None:
    folder = job_file.parent / "weights"
    save_tokenizer(folder / "infinity_vae_d32.pth", 32)
    missing = found_for(job_file)["tokenizer"]
    assert missing.mark is Mark.MISSING
    assert "infinity_vae_d32.pth is there, which is not this model's" in missing.text
    save_tokenizer(folder / "infinity_vae_d32reg.pth", 64)
    wrong = found_for(job_file)["tokenizer"]
    assert wrong.mark is Mark.MISSING
    assert "has 64 channels (as d64); infinity-2b was trained with d32reg" in wrong.text
    save_tokenizer(folder / "infinity_vae_d32reg.pth", 32)
    alike = found_for(job_file)["tokenizer"]
    assert alike.mark is Mark.OK
    assert "do not tell it from d32, with which images are bad" in alike.text
    torch.save({"word_embed.weight": torch.zeros(3584, 56)}, folder / "infinity_2b_reg.pth")
    other = found_for(job_file)["transformer"]
    assert "its word_embed is 3584 x 56; that of infinity-2b is 2048 x 32" in other.text


def test_sizes_that_weights_were_not_trained_for_are_told(job_file: Path) -> None:
    assert "resolution" not in found_for(job_file, "model.resolution=1M")
    warned = found_for(job_file, "model.resolution=0.25M")["resolution"]
    assert warned.mark is Mark.WARN and "trained for 1M" in warned.text
    large = found_for(job_file, "model.resolution=0.25M", "model.name=infinity-8b")
    assert "infinity-8b-512 has weights of that size" in large["resolution"].text
    assert "infinity_vae_d56_f8_14_patchify.pth" in large["tokenizer"].text


def test_a_job_for_a_gpu_that_is_not_here_cannot_run(job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (finding,) = check_device(needs_of(load_config(job_file, ["model.device=cuda"], needs_files=False)))
    assert finding.mark is Mark.MISSING
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert not check_device(needs_of(load_config(job_file, ["model.device=cuda"], needs_files=False)))


def test_settings_that_make_no_job_are_one_sentence(job_file: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", str(job_file), "--set", "reward.path=null"])
    assert result.exit_code == 2
    assert result.stderr.startswith("ttsvar-ray: reward.path: expected where aesthetic_predictor_v2_5.pth go")


def test_of_an_object_store_the_disk_that_matters_is_where_parts_are_made() -> None:
    config = load_config(None, ["output.path=s3://bucket/run"], needs_files=False)
    assert list(output_folder(config)) == ["parts before upload"]
    config = load_config(None, ["output.path=out"], needs_files=False)
    assert output_folder(config) == {"output": Path("out")}


class Broken(PlainReward):
    """Has no number for what is red."""

    name = "broken"

    def __init__(self, *, device: str) -> None: ...

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        return np.array([np.nan if " red " in text else len(text) for text in texts], np.float32)


class Blind(Broken):
    """Likes everything."""

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        return np.full(len(texts), 0.5, np.float32)


class Bright(Broken):
    """Looks at no caption."""

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        return images.mean(axis=(1, 2, 3), dtype=np.float32)


class Contrary(Broken):
    """Takes the wrong ones."""

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        return np.asarray(
            -build_reward("shapes", path=describe_model("shapes").reward_path).score(images, texts)
        )


@pytest.mark.parametrize(
    ("reward", "mark", "said"),
    [
        ("auto", Mark.OK, "prefers the right caption of 20 of 20 known pairs"),
        ("Broken", Mark.MISSING, "8 of 40 scores of known pairs are not finite"),
        ("Blind", Mark.WARN, "all 40 scores of known pairs are 0.5"),
        ("Bright", Mark.OK, "scores of 20 known pictures differ, and do not depend on the caption"),
        ("Contrary", Mark.WARN, "prefers the right caption of 0 of 20 known pairs, which is chance"),
    ],
)
def test_a_jobs_reward_is_tried_on_known_pairs(
    reward: str, mark: Mark, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    name = reward if reward == "auto" else f"{__name__}:{reward}"
    needs = needs_of(load_config(None, [f"reward.name={name}", "model.device=cpu"], needs_files=False))
    (finding,) = check_scores(needs)
    assert (finding.mark, finding.text[: len(said)]) == (mark, said)
    assert finding.name == f"scores {'shapes' if reward == 'auto' else name}"


def test_code_of_the_users_own_that_is_not_here_keeps_the_job_from_running(
    job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    own = ["reward.name=no_module:Mine", "features.extractor=json:Mine", "strategy.plan=published"]
    needs = needs_of(load_config(None, ["model.device=cpu", *own], needs_files=False))
    module, name = check_own_code(needs)
    assert module.mark is name.mark is Mark.MISSING
    assert module.text.startswith("reward.name: no module 'no_module' on the Python path")
    assert name.text.startswith("features.extractor: module 'json' has no 'Mine'")
    assert check_scores(needs) == [], "said once"
    here = load_config(None, [f"reward.name={__name__}:Blind", "model.device=cpu"], needs_files=False)
    (found,) = check_own_code(needs_of(here))
    assert (found.mark, found.text) == (Mark.OK, f"{__name__}:Blind")
    assert check_own_code(needs_of(load_config(None, ["model.device=cpu"], needs_files=False))) == []


def test_a_reward_that_is_not_here_is_not_tried(job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert check_scores(needs_of(load_config(job_file, [], needs_files=False))) == []
    shapes = load_config(None, ["model.device=cpu", "cluster.address=head:6379"], needs_files=False)
    assert check_scores(needs_of(shapes)) == [], "its workers are elsewhere"
    constant = load_config(None, ["model.device=cpu", "reward.name=constant"], needs_files=False)
    assert check_scores(needs_of(constant)) == [], "the same for every image on purpose"
