"""From uint8 images to the pixels a reward network was trained on: as its authors did it (PIL), or faster."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

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


def preprocess_on_device(
    images: UInt8Array,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
) -> Tensor:
    """Return float32 [n, 3, size, size] on `device`: as `preprocess`, resized there as float tensors.

    Bicubic with antialiasing, cut to [0, 1] like the 8-bit images of PIL but not rounded to 8 bits, and
    PIL's fixed-point weights are missing: pixels differ by about one level of 255.
    """
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255.0
    height, width = pixels.shape[2:]
    if (height, width) != (size, size):
        shorter = min(height, width)
        resized = (int(size * height / shorter), int(size * width / shorter))
        pixels = F.interpolate(pixels, size=resized, mode="bicubic", antialias=True).clamp(0.0, 1.0)
        top, left = (round((side - size) / 2.0) for side in resized)
        pixels = pixels[:, :, top : top + size, left : left + size]
    shape = (1, 3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)
