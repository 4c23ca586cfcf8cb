"""From images to a network's square: the published way is PIL's, the tensor way stays within two levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ttsvar_ray.features.pixels import IMAGENET_MEAN, IMAGENET_STD, SquarePixels
from ttsvar_ray.types import Preprocessing

CPU = torch.device("cpu")
SHAPES = [(70, 90), (91, 60), (300, 171), (56, 56), (1, 5)]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("resample", sorted(FILTERS))
@pytest.mark.parametrize("shape", SHAPES)
def test_the_published_way_is_pils(resample: str, shape: tuple[int, int]) -> None:
    image = picture(*shape)
    got = SquarePixels(size=56, resample=resample)(image[None], CPU)
    resized = np.asarray(Image.fromarray(image).resize((56, 56), FILTERS[resample])).astype(np.float32)
    expected = (resized / np.float32(255) - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    np.testing.assert_array_equal(got[0].numpy(), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("resample", sorted(FILTERS))
@pytest.mark.parametrize("shape", SHAPES)
def test_the_tensor_way_stays_within_two_levels(resample: str, shape: tuple[int, int]) -> None:
    image = picture(*shape)
    plain = {"size": 56, "resample": resample, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    published, tensor = (SquarePixels(**plain, mode=mode)(image[None], CPU) * 255 for mode in Preprocessing)
    assert (published - tensor).abs().max() <= 2.01
    if shape == (56, 56):
        assert torch.equal(published, tensor)


@pytest.mark.parametrize("mode", list(Preprocessing))
def test_an_images_pixels_do_not_depend_on_its_batch(mode: Preprocessing) -> None:
    images = np.stack([picture(70, 90) // (row + 1) for row in range(7)])
    images.setflags(write=False)
    pixels = SquarePixels(size=56, resample="bicubic", mode=mode)
    assert torch.equal(pixels(images, CPU), torch.cat([pixels(image[None], CPU) for image in images]))
