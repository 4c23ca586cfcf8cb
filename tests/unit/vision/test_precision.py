"""The numbers that rewards and features compute in: what each mode changes, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.shapes.captions import sample_caption, sample_scene_for
from recipes.shapes.render import render_batch
from tests.support.recorded import recorded_rewards
from ttsvar_ray.config.load import load_config
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.features.registry import build_extractor
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.models.registry import describe_model
from ttsvar_ray.rewards.network_reward import NetworkReward
from ttsvar_ray.rewards.registry import build_reward
from ttsvar_ray.types import Precision, UInt8Array

# By 10 and 7 binary places of weights and activations; measured three to ten times lower.
DRIFT = {Precision.FLOAT16: 0.02, Precision.BFLOAT16: 0.15}
"""Most of a score's or a feature's change, over the deviation of the published ones."""


@pytest.fixture(scope="module")
def scenes() -> tuple[UInt8Array, list[str]]:
    rng = np.random.default_rng(0)
    captions = [sample_caption(rng) for _ in range(12)]
    shown = [
        sample_scene_for(rng, sample_caption(rng) if i % 2 else caption) for i, caption in enumerate(captions)
    ]
    return render_batch(shown, 64), [caption.text for caption in captions]


@pytest.mark.parametrize("precision", [Precision.FLOAT16, Precision.BFLOAT16])
def test_narrow_rewards_move_scores_by_a_little_and_keep_the_best(
    scenes: tuple[UInt8Array, list[str]], precision: Precision
) -> None:
    folder = describe_model("shapes").reward_path
    wide, narrow = (
        build_reward("shapes", path=folder, dtype=dtype).score(*scenes) for dtype in ("float32", precision)
    )
    drift = np.abs(narrow - wide).max() / wide.std()
    assert 0 < drift < DRIFT[precision]
    assert narrow.argmax() == wide.argmax()


@pytest.mark.parametrize("extractor", ["pca", "pool", "pca_all"])
@pytest.mark.parametrize("precision", [Precision.FLOAT16, Precision.BFLOAT16])
def test_narrow_features_are_close(
    scenes: tuple[UInt8Array, list[str]], extractor: str, precision: Precision
) -> None:
    backbone = describe_model("shapes").backbone_path
    wide, narrow = (
        build_extractor(extractor, backbone=backbone, dtype=dtype).extract(scenes[0])
        for dtype in ("float32", precision)
    )
    assert narrow.dtype == np.float32
    moved = np.abs(narrow - wide).reshape(len(wide), -1).mean(axis=1) / wide.std()
    # A component may turn around where two coordinates are both nearly the largest: docs/features.md.
    assert 0 < np.median(moved) < DRIFT[precision]


def test_tf32_is_allowed_during_a_call_only_and_is_float32_on_a_cpu(
    scenes: tuple[UInt8Array, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = describe_model("shapes").reward_path
    wide, tf32 = (build_reward("shapes", path=folder, dtype=dtype) for dtype in ("float32", "tf32"))
    seen: list[bool] = []
    for reward in (wide, tf32):
        assert isinstance(reward, NetworkReward)
        forward = reward._forward

        def watched(*arguments: object, forward: object = forward) -> object:
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return forward(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(reward, "_forward", watched)
    np.testing.assert_array_equal(wide.score(*scenes), tf32.score(*scenes))
    assert seen == [False, True]
    assert not torch.backends.cuda.matmul.allow_tf32, "whoever computes next has what they had before"


def test_dinov2_computes_in_what_is_asked(tmp_path: Path) -> None:
    path = recorded_rewards() / "dinov2_reg" / "dinov2_vitl14_reg4_pretrain.pth"
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
    found = {
        dtype: build_extractor("pool", backbone=path, dtype=dtype).extract(images)
        for dtype in ("float32", "tf32", "bfloat16")
    }
    np.testing.assert_array_equal(found["float32"], found["tf32"])
    assert not np.array_equal(found["float32"], found["bfloat16"])


def test_an_unknown_precision_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"features\.dtype: expected one of float32, tf32"):
        build_extractor("pool", backbone="anywhere", dtype="float8")
    with pytest.raises(ConfigurationError, match=r"reward\.dtype: expected one of float32, tf32"):
        build_reward("shapes", path="anywhere", dtype="int8")


def test_the_plan_counts_what_is_narrow() -> None:
    sizes = []
    for dtype in ("float32", "tf32", "float16"):
        job = resolve(
            load_config(None, [f"reward.dtype={dtype}", f"features.dtype={dtype}"], needs_files=False)
        )
        weights = job_networks(job.config, job.description, job.plan, on_gpu=True).weight_bytes
        sizes.append((weights["reward"], weights["features"]))
    assert sizes[0] == sizes[1] == tuple(2 * size for size in sizes[2])
