"""Against recorded tensors of the official code: the shipped subset, and a full folder in $TTSVAR_GOLDEN."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ttsvar_ray.cli.app import app
from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.models.infinity.verify import verify_directory

SUBSET = Path(__file__).parents[1] / "data" / "infinity"


def test_shipped_subset_agrees() -> None:
    report = verify_directory(SUBSET)
    assert report.passed, "\n".join(report.lines())
    compared = {(found.case, found.kind) for found in report.comparisons}
    assert compared >= {
        ("A_square", "logits_cfg"),
        ("A_square", "logits_cond"),
        ("A_square", "logits_uncond"),
        ("A_square", "block"),
        ("A_square", "replay.keys"),
        ("A_sampled", "bits"),
        ("A_sampled", "image_bgr_u8"),
        ("B_sampled", "bits"),
        ("A_ttsvar_forced", "logits_cfg"),
        ("A_ttsvar_forced", "replay_after_s4.keys"),
        ("vae_A_square", "bits"),
        ("vae_A_square", "enc_features"),
    }
    assert [case.notes for case in report.cases if case.notes] == [], "every recorded tensor is compared"


@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    "TTSVAR_GOLDEN" not in os.environ, reason="set TTSVAR_GOLDEN to a folder of recorded tensors"
)
def test_full_folder_agrees() -> None:
    report = verify_directory(Path(os.environ["TTSVAR_GOLDEN"]))
    assert report.passed, "\n".join(report.lines())
    assert [case.notes for case in report.cases if case.notes] == []


def test_one_changed_weight_is_noticed(tmp_path: Path) -> None:
    for file in SUBSET.glob("*A*"):
        if "vae" not in file.name and "square" not in file.name and "ttsvar" not in file.name:
            shutil.copy(file, tmp_path)
    config = json.loads((SUBSET / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"A": config["A"]}))
    weights = load_file(tmp_path / "weights_A_infinity.safetensors")
    weights["block_chunks.1.module.1.ca.proj.bias"][3] += 0.05
    save_file(weights, tmp_path / "weights_A_infinity.safetensors")
    report = verify_directory(tmp_path)
    assert not report.passed
    assert any("FAILED" in line for line in report.lines())
    assert " differ" in report.lines()[-1]
    command = ["verify", "infinity", str(tmp_path)]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 1
    assert told.stdout.splitlines()[-1] == report.lines()[-1]
    (tmp_path / "case_A_sampled.safetensors").write_bytes(b"cut short")
    damaged = CliRunner().invoke(app, command)
    assert damaged.exit_code == 2
    assert "case_A_sampled.safetensors: cannot be read as a recorded file" in damaged.stderr


def test_unusable_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        verify_directory(tmp_path)
    shutil.copy(SUBSET / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="weights_A_infinity"):
        verify_directory(tmp_path)


def test_a_folder_without_cases_does_not_pass(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert not verify_directory(tmp_path).passed
