"""InceptionV3 features against torchvision's, and its file's keys; DINOv2 is compared in test_rewards.py."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support import inception
from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.features.inception import (
    InceptionFeatures,
    InceptionNetwork,
    load_inception,
    network_from,
)
from ttsvar_ray.features.registry import build_extractor
from ttsvar_ray.types import Preprocessing


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return inception.weights(inception.published_shapes())


@pytest.fixture(scope="module")
def extractor(weights: dict[str, Tensor]) -> InceptionFeatures:
    return InceptionFeatures(network_from(weights, source="rebuilt weights"), name="rebuilt")


def test_features_equal_those_of_torchvision(extractor: InceptionFeatures) -> None:
    with np.load(inception.RECORDED / "features.npz") as file:
        recorded = file["features"]
    got = np.concatenate([extractor.extract(image[None]) for image in inception.images()])
    assert recorded.std() > 0.5, "the recorded features say something"
    np.testing.assert_allclose(got, recorded, rtol=0, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(extractor: InceptionFeatures) -> None:
    images = np.stack([image[:60, :60] for image in inception.images()])
    together = extractor.extract(images)
    np.testing.assert_array_equal(extractor.extract(images[1:]), together[1:])
    assert together.shape == (2, 2048)


def test_tensor_preprocessing_is_close_to_the_published_one(
    weights: dict[str, Tensor], extractor: InceptionFeatures
) -> None:
    fast = InceptionFeatures(
        network_from(weights, source="rebuilt weights"), name="rebuilt", preprocessing=Preprocessing.TENSOR
    )
    image = inception.images()[0][None]
    difference = np.abs(fast.extract(image) - extractor.extract(image)).max()
    assert 0 < difference < 0.05


def test_every_published_key_is_loaded_or_dropped_on_purpose() -> None:
    shapes = inception.published_shapes()
    with torch.device("meta"):
        own = {key: list(value.shape) for key, value in InceptionNetwork().state_dict().items()}
    assert own.items() <= shapes.items()
    left_out = set(shapes) - set(own)
    assert {key.split(".")[0] for key in left_out} == {"AuxLogits", "fc"}
    learned = [
        math.prod(shape)
        for key, shape in shapes.items()
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    assert sum(learned) == 27_161_264


def test_the_published_file_loads_by_path(
    tmp_path: Path, weights: dict[str, Tensor], extractor: InceptionFeatures
) -> None:
    path = tmp_path / "inception_v3_google-0cc3c7bd.pth"
    torch.save(weights, path)
    loaded = build_extractor("inception", backbone=path)
    image = inception.images()[1][None]
    np.testing.assert_array_equal(loaded.extract(image), extractor.extract(image))
    assert loaded.name == "inception(inception_v3_google-0cc3c7bd)"


def test_misfits_are_listed(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    wrong = {**weights, "extra.weight": torch.zeros(1), "Mixed_7c.branch1x1.bn.bias": torch.zeros(3)}
    del wrong["Mixed_6a.branch3x3.conv.weight"]
    with pytest.raises(CheckpointError) as caught:
        network_from(wrong, source="here")
    assert "here: weights do not fit" in str(caught.value)
    assert "1 missing: Mixed_6a.branch3x3.conv.weight" in str(caught.value)
    assert "1 unexpected: extra.weight" in str(caught.value)
    assert "Mixed_7c.branch1x1.bn.bias (expected (320,), got (3,))" in str(caught.value)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"missing: Conv2d_1a_3x3\.conv\.weight"):
        load_inception(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        load_inception(tmp_path / "none.pth")
