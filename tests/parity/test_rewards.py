"""Rewards and features against recorded outputs of the official code, and `verify rewards` on bad folders.

The shipped subset always; a full folder too if $TTSVAR_GOLDEN_REWARDS names one.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.support.recorded import recorded_rewards, unpack
from ttsvar_ray.cli.app import app
from ttsvar_ray.cli.verify import compare_rewards
from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.recorded import ComparisonReport

RECORDED = recorded_rewards()


def only(case: str, folder: Path) -> Path:
    """Copy one recorded case and the images to `folder`."""
    for name in (case, "images"):
        shutil.copytree(RECORDED / name, folder / name)
    return folder


def compared(report: ComparisonReport) -> set[tuple[str, str]]:
    return {(comparison.case, comparison.array) for comparison in report.comparisons}


def test_the_shipped_subset_agrees() -> None:
    report = compare_rewards(RECORDED)
    assert report.passed, "\n".join(report.lines())
    assert compared(report) == {
        ("imagereward", "input_ids"),
        ("imagereward", "attention_mask"),
        ("imagereward", "score"),
        ("imagereward", "rewards"),
        ("imagereward", "rank"),
        ("imagereward", "one batch against one by one"),
        ("hpsv21", "score"),
        ("hpsv21", "one batch against one by one"),
        ("aesthetic_v25", "logits"),
        ("aesthetic_v25", "tts_var_score"),
        ("aesthetic_v25", "uint8_bhwc_128_logits"),
        ("aesthetic_v25", "one batch against one by one"),
        ("dinov2_reg", "cls"),
        ("dinov2_reg", "reg"),
        ("dinov2_reg", "patchtokens"),
        ("dinov2_reg", "pool"),
        ("dinov2_reg", "pca, deterministic sign"),
        ("dinov2_reg", "pca, published sign"),
        ("dinov2_reg", "pca_all, deterministic sign"),
        ("dinov2_reg", "pca_all, published sign"),
    }
    assert report.lines()[-1] == "cpu float32: 4 cases, 20 arrays compared, all agree"


@pytest.mark.skipif(
    "TTSVAR_GOLDEN_REWARDS" not in os.environ, reason="set TTSVAR_GOLDEN_REWARDS to a full recorded folder"
)
def test_a_full_folder_agrees() -> None:
    report = compare_rewards(Path(os.environ["TTSVAR_GOLDEN_REWARDS"]))
    assert report.passed, "\n".join(report.lines())
    assert {("hpsv21", "pixels"), ("dinov2_reg", "patchtokens_168x280")} <= compared(report)


def test_the_shipped_files_stay_small() -> None:
    data = Path(__file__).parents[1] / "data"
    sizes = {
        name: sum(path.stat().st_size for path in (data / name).rglob("*") if path.is_file())
        for name in ("rewards", "infinity")
    }
    assert sum(sizes.values()) <= 8_000_000, sizes


@pytest.mark.parametrize(
    ("case", "file", "key", "expected"),
    [
        ("imagereward", "ImageReward.pt", "blip.visual_encoder.blocks.1.attn.proj.bias", "score"),
        ("hpsv21", "HPS_v2.1_compressed.pt", "visual.transformer.resblocks.1.mlp.c_fc.bias", "score"),
        ("aesthetic_v25", "aesthetic_predictor_v2_5.pth", "scoring_head.4.bias", "logits"),
        ("dinov2_reg", "dinov2_vitl14_reg4_pretrain.pth", "blocks.2.ls2.gamma", "patchtokens"),
    ],
)
def test_one_changed_weight_is_noticed(tmp_path: Path, case: str, file: str, key: str, expected: str) -> None:
    folder = only(case, tmp_path)
    content = torch.load(folder / case / file, weights_only=True)
    weights = content.get("state_dict", content)
    weights[key][3] += 0.05
    torch.save(content, folder / case / file)
    report = compare_rewards(folder)
    assert not report.passed
    failed = {comparison.array for comparison in report.comparisons if not comparison.passed}
    assert expected in failed
    assert "one batch against one by one" not in failed
    assert "differ" in report.lines()[-1]


@pytest.mark.parametrize(
    ("case", "file"),
    [
        ("imagereward", "ImageReward.pt"),
        ("imagereward", "med_config.json"),
        ("imagereward", "vocab.txt"),
        ("imagereward", "ref.json"),
        ("hpsv21", "HPS_v2.1_compressed.pt"),
        ("hpsv21", "ref.json"),
        ("aesthetic_v25", "aesthetic_predictor_v2_5.pth"),
        ("aesthetic_v25", "siglip/model.safetensors"),
        ("dinov2_reg", "dinov2_vitl14_reg4_pretrain.pth"),
        ("dinov2_reg", "ref.npz"),
        ("dinov2_reg", "meta.json"),
        ("images", "small2.png"),
    ],
)
def test_missing_and_damaged_files_are_named(tmp_path: Path, case: str, file: str) -> None:
    folder = only("imagereward" if case == "images" else case, tmp_path)
    target = folder / case / file
    content = target.read_bytes()
    if target.suffix != ".txt":  # any text is a vocabulary
        target.write_bytes(content[: len(content) // 2])
        with pytest.raises(CheckpointError, match=target.name):
            compare_rewards(folder)
    target.unlink()
    with pytest.raises(CheckpointError, match=target.name):
        compare_rewards(folder)


def test_references_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = only("imagereward", tmp_path)
    path = folder / "imagereward" / "ref.json"
    reference = json.loads(path.read_text())
    path.write_text(json.dumps({**reference, "score": [row[:2] for row in reference["score"]]}))
    with pytest.raises(CheckpointError, match=r"score: recorded with shape \(3, 2\), computed with \(3, 4\)"):
        compare_rewards(folder)
    path.write_text(json.dumps({**reference, "score": "none"}))
    with pytest.raises(CheckpointError, match="score: expected an array of numbers"):
        compare_rewards(folder)
    del reference["prompts"]
    path.write_text(json.dumps(reference))
    with pytest.raises(CheckpointError, match="expected the key 'prompts'"):
        compare_rewards(folder)


def test_a_reference_that_is_not_a_number_fails(tmp_path: Path) -> None:
    folder = only("dinov2_reg", tmp_path)
    np.savez(folder / "dinov2_reg" / "ref.npz", pool=np.full((4, 64), np.nan, np.float32))
    assert not compare_rewards(folder).passed
    np.savez(folder / "dinov2_reg" / "ref.npz", other=np.zeros(3))
    report = compare_rewards(folder)
    assert not report.passed, "nothing was compared"
    assert "recorded but not compared: other" in "\n".join(report.lines())


def test_the_command_ends_with_a_verdict_and_its_exit_code(tmp_path: Path) -> None:
    folder = only("dinov2_reg", tmp_path)
    (folder / "blip_vqa").mkdir()
    run = CliRunner()
    good = run.invoke(app, ["verify", "rewards", str(folder)])
    assert good.exit_code == 0
    assert good.stdout.splitlines()[-1] == "cpu float32: 1 cases, 8 arrays compared, all agree"
    assert "blip_vqa: not covered" in good.stdout
    assert "hpsv21: not in this folder" in good.stdout
    assert "mask2former: not in this folder" in good.stdout
    with np.load(folder / "dinov2_reg" / "ref.npz") as file:
        arrays = dict(file)
    np.savez(folder / "dinov2_reg" / "ref.npz", **{**arrays, "pool": arrays["pool"] + np.float32(1e-3)})
    bad = run.invoke(app, ["verify", "rewards", str(folder)])
    assert bad.exit_code == 1
    assert bad.stdout.splitlines()[-1] == "cpu float32: 1 cases, 8 arrays compared, 1 of 8 differ"
    empty = run.invoke(app, ["verify", "rewards", str(tmp_path / "nothing")])
    assert empty.exit_code == 2
    assert "no such folder" in empty.stderr
    assert run.invoke(app, ["verify", "rewards", str(folder), "--dtype", "bfloat16"]).exit_code == 2


def test_unpacking_gives_the_format_that_verify_reads(tmp_path: Path) -> None:
    unpack(tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"imagereward/ImageReward.pt", "hpsv21/HPS_v2.1_compressed.pt", "images/small3.png"} <= names
    assert not any(name.endswith(".xz") for name in names)
