"""From uint8 images to the pixels a reward network was trained on, the way its authors did it (PIL)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ttsvar_ray.types import Float32Array, UInt8Array


def shorter_side_centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` (bicubic) and cut the centre square; the longer side loses its ends.

    Source: the CLIP-style preprocessing of ImageReward; rounding as in torchvision's Resize and CenterCrop.
    """
    width, height = image.size
    shorter = min(width, height)
    resized = (int(size * width / shorter), int(size * height / shorter))
    if (width, height) != resized:
        image = image.resize(resized, Image.Resampling.BICUBIC)
    left = round((resized[0] - size) / 2.0)
    top = round((resized[1] - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def preprocess(
    images: UInt8Array, size: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float32Array:
    """Return float32 [n, 3, size, size] normalised pixels.

    Args:
        images: uint8 RGB [n, height, width, 3]. Images of exactly size x size are not resampled.
        size: pixels of the network's square input.
        mean, std: per channel, of pixels in [0, 1].
    """
    if images.shape[1:3] != (size, size):
        images = np.stack(
            [np.asarray(shorter_side_centre_crop(Image.fromarray(image), size)) for image in images]
        )
    scaled = images.astype(np.float32) / np.float32(255.0)
    normalised = (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))
