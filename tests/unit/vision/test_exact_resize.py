"""Pillow's resizing on any device: the same levels, and the same pixels of every recipe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ttsvar_ray.vision import exact_resize
from ttsvar_ray.vision.exact_resize import Order, pillow_order, resize_levels
from ttsvar_ray.vision.pixels import HALF, Fit, Library, PixelRecipe, Resample

CPU = torch.device("cpu")
SIZES = [
    ((256, 256), (224, 224)),
    ((61, 90), (24, 36)),
    ((30, 31), (48, 48)),
    ((120, 70), (48, 48)),
    ((64, 166), (48, 48)),
    ((49, 48), (48, 48)),
    ((48, 48), (48, 48)),
    ((40, 40), (1, 1)),
]


def pictures(height: int, width: int) -> np.ndarray:
    """Return noise, and black and white, which overshoots."""
    levels = np.random.default_rng(height * width).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    levels[1] = (levels[1] > 127) * 255
    return levels


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_levels_are_pillows_to_the_bit(old: tuple[int, int], new: tuple[int, int], resample: str) -> None:
    images = pictures(*old)
    order = pillow_order(old, new, resample)
    assert order is not None
    ours = resize_levels(torch.from_numpy(images).permute(0, 3, 1, 2), *new, resample, order)
    for image, made in zip(images, ours, strict=True):
        theirs = Image.fromarray(image).resize(new[::-1], Image.Resampling[resample.upper()])
        np.testing.assert_array_equal(made.permute(1, 2, 0), np.asarray(theirs))


@pytest.mark.parametrize("shape", [(70, 90), (120, 70), (48, 48), (49, 48)])
@pytest.mark.parametrize("fit", [Fit.CROP, Fit.STRETCH])
@pytest.mark.parametrize("library", Library)
@pytest.mark.parametrize("resample", Resample)
def test_a_recipes_pixels_are_the_published_ones(
    fit: Fit, library: Library, resample: Resample, shape: tuple[int, int]
) -> None:
    recipe = PixelRecipe(size=48, fit=fit, resample=resample, library=library, mean=HALF, std=HALF)
    images = pictures(*shape)
    assert recipe.is_exact_on_device(*shape)
    assert torch.equal(recipe.apply_exactly(images, CPU), recipe.apply(images, CPU))


def test_an_order_that_is_not_pillows_is_seen() -> None:
    old, new = (120, 70), (48, 48)
    given = torch.from_numpy(pictures(*old)).permute(0, 3, 1, 2)
    one, other = (resize_levels(given, *new, "bicubic", order) for order in Order)
    assert not torch.equal(one, other), "the orders differ, so that asking Pillow decides something"


def test_a_pillow_that_rounds_otherwise_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_order.cache_clear()
    monkeypatch.setattr(exact_resize, "_to_levels", lambda sums: (sums * 0).to(torch.uint8))
    assert not PixelRecipe(size=48).is_exact_on_device(70, 90)
    pillow_order.cache_clear()
