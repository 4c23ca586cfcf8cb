"""From images to a network's square: the published way is PIL's, the tensor way is a level or two off."""

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


def smooth(height: int, width: int) -> np.ndarray:
    coarse = Image.fromarray(picture(5, 6))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("resample", sorted(FILTERS))
@pytest.mark.parametrize(
    "image", [smooth(*shape) for shape in SHAPES], ids=[f"{height}x{width}" for height, width in SHAPES]
)
def test_the_tensor_way_stays_within_two_levels_of_a_picture(resample: str, image: np.ndarray) -> None:
    assert difference(image, resample) <= 2.01


@pytest.mark.parametrize("resample", sorted(FILTERS))
@pytest.mark.parametrize("side", [40, 57, 300])
def test_it_stays_within_one_level_on_square_noise(resample: str, side: int) -> None:
    assert difference(picture(side, side), resample) <= 1.01


def test_native_sizes_are_the_same_either_way() -> None:
    assert difference(picture(56, 56), "bicubic") == 0.0


def difference(image: np.ndarray, resample: str) -> float:
    """Return the largest difference in levels of 255."""
    plain = {"size": 56, "resample": resample, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    published, tensor = (SquarePixels(**plain, mode=mode)(image[None], CPU) * 255 for mode in Preprocessing)
    return float((published - tensor).abs().max())


@pytest.mark.parametrize("mode", list(Preprocessing))
def test_an_images_pixels_do_not_depend_on_its_batch(mode: Preprocessing) -> None:
    images = np.stack([picture(70, 90) // (row + 1) for row in range(7)])
    images.setflags(write=False)
    pixels = SquarePixels(size=56, resample="bicubic", mode=mode)
    assert torch.equal(pixels(images, CPU), torch.cat([pixels(image[None], CPU) for image in images]))
