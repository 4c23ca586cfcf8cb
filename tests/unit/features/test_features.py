"""Feature extractors against the official DINOv2, and the sign rule of the principal component."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2WithRegistersModel

from tests.support.recorded import recorded_rewards
from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.features.backbones import PatchBackbone, load_backbone, load_dinov2, read_dinov2
from ttsvar_ray.features.patch_features import mean_over_patches
from ttsvar_ray.features.registry import build_extractor
from ttsvar_ray.search.principal_component import ComponentSign, first_component, first_component_of_all

DATA = recorded_rewards()
CHECKPOINT = DATA / "dinov2_reg" / "dinov2_vitl14_reg4_pretrain.pth"
REDUCED_HEAD_WIDTH = 16


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(DATA / "dinov2_reg" / "ref.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def backbone() -> PatchBackbone:
    return load_dinov2(CHECKPOINT, head_width=REDUCED_HEAD_WIDTH)


def reference_images() -> list[np.ndarray]:
    return [np.asarray(Image.open(DATA / "images" / f"small{i}.png").convert("RGB")) for i in range(4)]


def aligned(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Give each row the sign of its reference row."""
    return values * np.sign((values * reference).sum(axis=-1, keepdims=True))


def test_patch_tokens_equal_the_official_ones(
    backbone: PatchBackbone, reference: dict[str, np.ndarray]
) -> None:
    for image, expected in zip(reference_images(), reference["patchtokens"], strict=True):
        np.testing.assert_allclose(backbone.patches(image[None])[0], expected, rtol=0, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(backbone: PatchBackbone) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 30, 3), dtype=np.uint8)
    alone = np.concatenate([backbone.patches(images[row : row + 1]) for row in range(5)])
    np.testing.assert_array_equal(alone, backbone.patches(images))


@pytest.mark.parametrize("sign", list(ComponentSign))
def test_components_equal_the_official_ones_up_to_sign(
    sign: ComponentSign, reference: dict[str, np.ndarray]
) -> None:
    patches = reference["patchtokens"]
    component = first_component(patches, sign)
    np.testing.assert_allclose(aligned(component, reference["pca"]), reference["pca"], rtol=0, atol=5e-5)
    together = first_component_of_all(patches, sign).reshape(1, -1)
    expected = reference["pca_all"].reshape(1, -1)
    np.testing.assert_allclose(aligned(together, expected), expected, rtol=0, atol=5e-5)


def test_pool_equals_the_official_one(reference: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(
        mean_over_patches(reference["patchtokens"]), reference["pool"], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("num_patches", "width"), [(20, 6), (6, 20)])
def test_the_sign_rule_ignores_the_order_of_patches_and_small_changes(num_patches: int, width: int) -> None:
    generator = np.random.default_rng(7)
    patches = generator.normal(size=(30, num_patches, width)).astype(np.float32)
    # One clear direction whose largest coordinate is clear too, pointing either way.
    along = generator.normal(size=(30, num_patches, 1)) * 8
    patches += (along * np.linspace(0.2, 1.0, width)).astype(np.float32)
    component = first_component(patches, ComponentSign.DETERMINISTIC)
    order = generator.permutation(num_patches)
    np.testing.assert_allclose(
        first_component(patches[:, order], ComponentSign.DETERMINISTIC), component[:, order], atol=1e-4
    )
    nudged = patches + generator.normal(size=patches.shape).astype(np.float32) * 1e-3
    assert np.abs(first_component(nudged, ComponentSign.DETERMINISTIC) - component).max() < 0.1
    # The direction's largest coordinate is its last one, and it is positive: the component grows with it.
    assert (
        (component * (patches[:, :, -1] - patches[:, :, -1].mean(axis=1, keepdims=True))).sum(axis=1) > 0
    ).all()


def test_equal_coordinates_are_a_tie_that_the_first_one_decides() -> None:
    ramp = np.linspace(-1, 1, 9, dtype=np.float32)
    for sign in (1, -1):
        patches = np.stack([sign * ramp, -sign * ramp * np.float32(1 + 1e-7)], axis=1)[None]
        component = first_component(patches, ComponentSign.DETERMINISTIC)[0]
        np.testing.assert_allclose(component, sign * ramp * np.sqrt(2), atol=1e-6)


def test_a_flat_image_has_a_zero_component() -> None:
    flat = np.full((2, 12, 5), 3.0, np.float32)
    assert np.abs(first_component(flat, ComponentSign.DETERMINISTIC)).max() < 1e-6
    assert (
        np.abs(first_component(np.full((1, 3, 5), 3.0, np.float32), ComponentSign.DETERMINISTIC)).max() < 1e-6
    )


def test_a_transformers_directory_is_the_same_network(tmp_path: Path, backbone: PatchBackbone) -> None:
    config, weights = read_dinov2(CHECKPOINT, head_width=REDUCED_HEAD_WIDTH)
    network = Dinov2WithRegistersModel(config)
    network.load_state_dict(weights)
    network.save_pretrained(tmp_path)
    images = np.stack([image[:60, :60] for image in reference_images()])
    np.testing.assert_array_equal(
        load_backbone(tmp_path, device="cpu").patches(images), backbone.patches(images)
    )


def test_registry_lists_every_problem() -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_extractor("dino", backbone=None, pca_sign="random")
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigurationError, match=r"inception_v3_google-0cc3c7bd\.pth, got nothing"):
        build_extractor("inception", backbone=None)


def test_registry_refuses_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the directory has none"):
        build_extractor("pca", backbone=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match="model_type 'clip'"):
        build_extractor("pca", backbone=tmp_path)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="register_tokens"):
        build_extractor("pca", backbone=tmp_path / "other.pth")
