"""The principal component as a device finds it, against the one by an eigenvalue solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.recorded import recorded_rewards
from ttsvar_ray.features.backbones import load_dinov2
from ttsvar_ray.features.patch_features import first_component_on_device
from ttsvar_ray.search.principal_component import ComponentSign, first_component

TOLERANCE = 1e-5
"""Of the deviation of the projections, as the function promises."""


def both(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    on_device = first_component_on_device(torch.from_numpy(patches)).numpy()
    assert on_device.dtype == np.float32
    return on_device, first_component(patches, ComponentSign.DETERMINISTIC)


@pytest.mark.parametrize(("count", "width"), [(256, 64), (20, 12), (12, 20), (60, 256), (5, 5)])
def test_it_is_the_solvers_on_noise_whichever_side_is_smaller(count: int, width: int) -> None:
    patches = np.random.default_rng(count).normal(size=(3, count, width)).astype(np.float32)
    on_device, solved = both(patches + 7)
    np.testing.assert_allclose(on_device, solved, rtol=0, atol=TOLERANCE * solved.std())


@pytest.mark.parametrize("gap", [0.5, 1e-2, 1e-3, 1e-4])
def test_it_keeps_its_promise_down_to_the_smallest_gap(gap: float) -> None:
    rng = np.random.default_rng(3)
    left, right = (np.linalg.qr(rng.normal(size=(size, 24)))[0] for size in (80, 48))
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    values = np.sqrt(np.concatenate([[1.0, 1.0 - gap], np.linspace(0.9, 0.1, 22)]))
    patches = (50 * (left * values) @ right.T).astype(np.float32)[None]
    on_device, solved = both(patches)
    np.testing.assert_allclose(on_device, solved, rtol=0, atol=TOLERANCE * solved.std())


def test_the_sign_rule_is_the_same_and_ties_go_to_the_first_coordinate() -> None:
    ramp = np.linspace(-1, 1, 9, dtype=np.float32)
    for sign in (1, -1):
        patches = np.stack([sign * ramp, -sign * ramp * np.float32(1 + 1e-7)], axis=1)[None]
        on_device, solved = both(patches)
        np.testing.assert_allclose(on_device, solved, atol=1e-6)


def test_an_image_does_not_depend_on_the_others_and_a_flat_one_is_zero() -> None:
    patches = np.random.default_rng(1).normal(size=(3, 30, 10)).astype(np.float32)
    patches[1] = 3.0
    together = first_component_on_device(torch.from_numpy(patches)).numpy()
    assert np.abs(together[1]).max() < 1e-6
    alone = first_component_on_device(torch.from_numpy(patches[:1])).numpy()
    np.testing.assert_allclose(alone[0], together[0], rtol=0, atol=1e-6)


def test_a_backbone_reduces_its_patches_where_they_are() -> None:
    backbone = load_dinov2(
        recorded_rewards() / "dinov2_reg" / "dinov2_vitl14_reg4_pretrain.pth", head_width=16
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 30, 3), dtype=np.uint8)
    reduced = backbone.patches(images, first_component_on_device)
    solved = first_component(backbone.patches(images), ComponentSign.DETERMINISTIC)
    np.testing.assert_allclose(reduced, solved, rtol=0, atol=TOLERANCE * solved.std())
