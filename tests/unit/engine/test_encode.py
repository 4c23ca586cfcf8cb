"""Image files: what was encoded comes back."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ttsvar_ray.engine.encode import ImageEncoder
from ttsvar_ray.errors import ConfigurationError


def gradient() -> np.ndarray:
    rows, columns = np.mgrid[0:24, 0:40]
    return np.stack([rows * 10, columns * 6, rows + columns], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("image_format", "quality"), [("png", 95), ("webp", 100)])
def test_lossless_formats_return_the_pixels(image_format: str, quality: int) -> None:
    encoder = ImageEncoder(image_format=image_format, quality=quality, threads=2)
    images = np.stack([gradient(), 255 - gradient()])
    for pixels, begun in zip(images, [encoder.begin(pixels) for pixels in images], strict=True):
        file = begun.result()
        decoded = Image.open(io.BytesIO(file.payload))
        assert decoded.format == image_format.upper()
        assert (file.width, file.height, file.image_format) == (40, 24, image_format)
        np.testing.assert_array_equal(np.asarray(decoded.convert("RGB")), pixels)


def test_jpeg_is_close_and_keeps_the_channel_order() -> None:
    file = ImageEncoder(image_format="jpeg", quality=95, threads=1).encode(gradient())
    decoded = np.asarray(Image.open(io.BytesIO(file.payload))).astype(int)
    assert np.abs(decoded - gradient()).mean() < 3


def test_equal_pixels_give_equal_bytes() -> None:
    encoder = ImageEncoder(image_format="webp", quality=80, threads=2)
    first, second = encoder.encode(gradient()), encoder.begin(gradient()).result()
    assert first.payload == second.payload


def test_the_png_level_trades_bytes_for_time_and_keeps_the_pixels() -> None:
    files = [
        ImageEncoder(image_format="png", quality=95, threads=1, png_level=level).encode(gradient())
        for level in (0, 6)
    ]
    assert len(files[0].payload) > len(files[1].payload)
    plain = ImageEncoder(image_format="png", quality=95, threads=1).encode(gradient())
    assert plain.payload == files[1].payload
    for file in files:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file.payload))), gradient())


@pytest.mark.parametrize(
    ("image_format", "quality", "png_level"),
    [("gif", 95, 6), ("png", 0, 6), ("jpeg", 101, 6), ("png", 95, 10)],
)
def test_settings_that_cannot_be_are_refused(image_format: str, quality: int, png_level: int) -> None:
    with pytest.raises(ConfigurationError, match="output"):
        ImageEncoder(image_format=image_format, quality=quality, threads=1, png_level=png_level)
