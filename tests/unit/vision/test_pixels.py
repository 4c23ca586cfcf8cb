"""From images to pixels: each published way, and what the faster one changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor, SiglipImageProcessor

from ttsvar_ray.types import Preprocessing
from ttsvar_ray.vision.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Fit,
    Library,
    PixelRecipe,
    Resample,
)

CPU = torch.device("cpu")
SHAPES = [(70, 90), (91, 60), (64, 64), (300, 171), (48, 48), (49, 48)]


def image(height: int, width: int) -> np.ndarray:
    """Return a smooth image with some noise, uint8 [height, width, 3]."""
    generator = np.random.default_rng(height * width)
    small = Image.fromarray(generator.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int64)
    return np.clip(smooth + generator.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


def tensor(recipe: PixelRecipe) -> PixelRecipe:
    """Return the faster way beside a published one."""
    return replace(recipe, preprocessing=Preprocessing.TENSOR)


def processed(folder: Path, picture: np.ndarray) -> torch.Tensor:
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return torch.as_tensor(np.array(processor(images=Image.fromarray(picture))["pixel_values"]))


@pytest.mark.parametrize("shape", SHAPES)
def test_siglips_pixels_are_bit_equal_to_its_processors(tmp_path: Path, shape: tuple[int, int]) -> None:
    processor = SiglipImageProcessor(size={"height": 48, "width": 48}, image_mean=HALF, image_std=HALF)
    processor.save_pretrained(tmp_path)
    recipe = PixelRecipe(size=48, fit=Fit.STRETCH, mean=HALF, std=HALF, library=Library.TRANSFORMERS)
    picture = image(*shape)
    assert torch.equal(recipe.apply(picture[None], CPU), processed(tmp_path, picture))


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_clip_pixels_are_bit_equal_to_its_processors(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    processor = CLIPImageProcessor(
        size={"shortest_edge": 48},
        crop_size={"height": 48, "width": 48},
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )
    processor.save_pretrained(tmp_path)
    recipe = PixelRecipe(size=48, library=Library.TRANSFORMERS)
    picture = image(*shape)
    assert torch.equal(recipe.apply(picture[None], CPU), processed(tmp_path, picture))


def test_torchvisions_crop_rounds_half_to_even() -> None:
    # 48 x 55 leaves 7 columns: 3.5 is rounded to 4, where transformers takes 3.
    picture = image(48, 55)
    ours = PixelRecipe(size=48, mean=(0.0,) * 3, std=(1.0,) * 3).apply(picture[None], CPU)
    np.testing.assert_array_equal(
        ours[0].permute(1, 2, 0), (picture[:, 4:52] / np.float32(255)).astype(np.float32)
    )


def test_a_native_size_image_is_not_resampled() -> None:
    picture = image(48, 48)
    for fit in Fit:
        pixels = PixelRecipe(size=48, fit=fit, mean=(0.0,) * 3, std=(1.0,) * 3).apply(picture[None], CPU)
        np.testing.assert_allclose(pixels[0].permute(1, 2, 0), picture / 255, rtol=0, atol=1e-7)


def test_cropping_loses_the_ends_of_the_longer_side() -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255
    pixels = PixelRecipe(size=32, mean=(0.0,) * 3, std=(1.0,) * 3).apply(wide[None], CPU)
    assert pixels.min() == 1.0


@pytest.mark.parametrize(
    ("shape", "margins"), [((24, 48), (12, 12, 0, 0)), ((48, 47), (0, 0, 0, 1)), ((96, 60), (0, 0, 9, 9))]
)
def test_padding_is_black_before_the_normalisation_and_even(
    shape: tuple[int, int], margins: tuple[int, int, int, int]
) -> None:
    white = np.full((*shape, 3), 255, np.uint8)
    pixels = PixelRecipe(size=48, fit=Fit.PAD).apply(white[None], CPU)[0]
    top, bottom, left, right = margins
    inside = pixels[:, top : 48 - bottom, left : 48 - right]
    light, dark = (
        torch.tensor([(level - m) / s for m, s in zip(CLIP_MEAN, CLIP_STD, strict=True)]) for level in (1, 0)
    )
    torch.testing.assert_close(inside.amin(dim=(1, 2)), light)
    torch.testing.assert_close(inside.amax(dim=(1, 2)), light)
    outside = pixels.clone()
    outside[:, top : 48 - bottom, left : 48 - right] = dark.view(3, 1, 1)
    torch.testing.assert_close(outside, dark.view(3, 1, 1).expand(3, 48, 48))


@pytest.mark.parametrize("fit", [Fit.CROP, Fit.STRETCH])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_tensor_way_is_a_few_levels_off_at_most(fit: Fit, shape: tuple[int, int]) -> None:
    recipe = PixelRecipe(size=48, fit=fit, mean=(0.0,) * 3, std=(1.0,) * 3)
    picture = image(*shape)
    published, tensors = recipe.apply(picture[None], CPU), tensor(recipe).apply(picture[None], CPU)
    difference = (published - tensors).abs() * 255
    assert difference.max() <= 2.01
    assert difference.mean() <= 0.3


@pytest.mark.parametrize("fit", Fit)
def test_an_images_pixels_do_not_depend_on_its_batch(fit: Fit) -> None:
    pictures = np.stack([image(70, 90) // (1 + row) for row in range(9)])
    for recipe in (PixelRecipe(size=48, fit=fit), tensor(PixelRecipe(size=48, fit=fit))):
        together = recipe.apply(pictures, CPU)
        alone = torch.cat([recipe.apply(picture[None], CPU) for picture in pictures])
        assert torch.equal(together, alone)
        assert recipe.apply(pictures[:0], CPU).shape == (0, 3, 48, 48)


def test_a_read_only_image_is_taken() -> None:
    picture = image(70, 90)
    picture.setflags(write=False)
    for recipe in (PixelRecipe(size=48), tensor(PixelRecipe(size=48)), PixelRecipe(size=48, fit=Fit.PAD)):
        assert recipe.apply(picture[None], CPU).shape == (1, 3, 48, 48)


ANY_SHAPES = [(70, 90), (91, 60), (300, 171), (56, 56), (1, 5)]
PIL_FILTERS = {Resample.BILINEAR: Image.Resampling.BILINEAR, Resample.BICUBIC: Image.Resampling.BICUBIC}


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("resample", list(Resample))
@pytest.mark.parametrize("shape", ANY_SHAPES)
def test_the_published_way_is_pils(resample: Resample, shape: tuple[int, int]) -> None:
    image = picture(*shape)
    recipe = stretched(resample, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    got = recipe.apply(image[None], CPU)
    resized = np.asarray(Image.fromarray(image).resize((56, 56), PIL_FILTERS[resample])).astype(np.float32)
    expected = (resized / np.float32(255) - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    np.testing.assert_array_equal(got[0].numpy(), expected.transpose(2, 0, 1))


def smooth(height: int, width: int) -> np.ndarray:
    coarse = Image.fromarray(picture(5, 6))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("resample", list(Resample))
@pytest.mark.parametrize(
    "image",
    [smooth(*shape) for shape in ANY_SHAPES],
    ids=[f"{height}x{width}" for height, width in ANY_SHAPES],
)
def test_the_tensor_way_stays_within_two_levels_of_a_picture(resample: Resample, image: np.ndarray) -> None:
    assert difference(image, resample) <= 2.01


@pytest.mark.parametrize("resample", list(Resample))
@pytest.mark.parametrize("side", [40, 57, 300])
def test_it_stays_within_one_level_on_square_noise(resample: Resample, side: int) -> None:
    assert difference(picture(side, side), resample) <= 1.01


def test_native_sizes_are_the_same_either_way() -> None:
    assert difference(picture(56, 56), Resample.BICUBIC) == 0.0


def stretched(resample: Resample, **settings: object) -> PixelRecipe:
    return PixelRecipe(size=56, fit=Fit.STRETCH, resample=resample, **settings)  # type: ignore[arg-type]


def difference(image: np.ndarray, resample: Resample) -> float:
    """Return the largest difference in levels of 255."""
    plain = stretched(resample, mean=(0.0,) * 3, std=(1.0,) * 3)
    published, tensors = plain.apply(image[None], CPU), tensor(plain).apply(image[None], CPU)
    return float((published - tensors).abs().max()) * 255
