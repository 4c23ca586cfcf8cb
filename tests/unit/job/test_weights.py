"""Which weights a job computes with is found out before it starts, and recorded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.support.manifests import manifest
from tests.support.published_infinity import TINY, write_published
from ttsvar_ray.config.job import JobConfig, content_digest
from ttsvar_ray.config.load import load_config
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest
from ttsvar_ray.dataset.output import check_output, open_output
from ttsvar_ray.errors import CheckpointError, OutputError
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.job.weights import fingerprints, pin_weights
from ttsvar_ray.models.infinity.presets import PRESETS
from ttsvar_ray.models.weight_source import HubRepository

COMMIT = "c" * 40


@pytest.fixture(autouse=True)
def _known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, TINY.name, TINY)


def settings(*overrides: str) -> JobConfig:
    common = (f"model.name={TINY.name}", "strategy.name=best-of-n", "reward.name=constant")
    return load_config(None, (*common, *overrides), needs_files=False)


def manifest_of(config: JobConfig) -> RunManifest:
    content = {**config.content(), **fingerprints(resolve(config))}
    return manifest(config=config, content=content, config_digest=content_digest(content))


def test_a_run_goes_on_with_the_same_weights_from_anywhere_and_with_no_others(tmp_path: Path) -> None:
    here, there = write_published(tmp_path / "here", TINY), tmp_path / "there"
    here.rename(there)
    write_published(here, dataclasses.replace(TINY))
    for file in ("infinity_tiny.pth", "infinity_vae_tiny.pth"):
        (here / file).write_bytes((there / file).read_bytes())
    for file in (there / "flan-t5-xl").iterdir():
        (here / "flan-t5-xl" / file.name).write_bytes(file.read_bytes())
    layout = OutputLayout(tmp_path / "out")
    first = manifest_of(settings(f"model.path={here}"))
    assert {"weights.transformer", "weights.tokenizer", "weights.text_encoder"} <= first.content.keys()
    open_output(layout, first)
    layout.data_part(0).write_text("only its name counts here")
    assert check_output(layout, manifest_of(settings(f"model.path={there}"))) is not None
    weights = torch.load(there / "infinity_tiny.pth", weights_only=True, mmap=False)
    weights["head.bias"] += 1
    torch.save(weights, there / "infinity_tiny.pth")
    with pytest.raises(OutputError, match=r"weights\.transformer: \"sampled-sha256:"):
        check_output(layout, manifest_of(settings(f"model.path={there}")))


def test_weights_that_are_not_there_are_named_before_anything_starts(tmp_path: Path) -> None:
    config = settings(f"model.path={tmp_path}", f"model.text_encoder={tmp_path}")
    with pytest.raises(CheckpointError, match=r"infinity_tiny\.pth: no such file"):
        fingerprints(resolve(config))


def test_repositories_are_pinned_and_stand_for_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HubRepository, "pinned", lambda self: dataclasses.replace(self, revision=COMMIT))
    config = load_config(
        None,
        ["model.name=infinity-2b", "strategy.name=best-of-n", "reward.name=constant"],
        needs_files=False,
    )
    job = pin_weights(resolve(config))
    pinned = job.config
    assert pinned.model.path == f"hf:FoundationVision/Infinity@{COMMIT}"
    assert pinned.model.text_encoder == f"hf:google/flan-t5-xl@{COMMIT}"
    assert pinned.digest() == config.digest()
    assert fingerprints(job) == {
        "weights.transformer": f"hf:FoundationVision/Infinity@{COMMIT} infinity_2b_reg.pth",
        "weights.tokenizer": f"hf:FoundationVision/Infinity@{COMMIT} infinity_vae_d32reg.pth",
        "weights.text_encoder": f"hf:google/flan-t5-xl@{COMMIT}",
    }
    local = settings("model.path=/weights", "model.text_encoder=hf:someone/t5")
    kept = pin_weights(resolve(local)).config.model
    assert (kept.path, kept.text_encoder) == ("/weights", f"hf:someone/t5@{COMMIT}")
    shapes = resolve(load_config(None, [], needs_files=False))
    assert pin_weights(shapes) is shapes
