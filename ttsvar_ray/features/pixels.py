"""From uint8 images to normalised square pixels, aspect ratio ignored: as published (PIL), or faster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ttsvar_ray.types import Float32Array, Preprocessing, UInt8Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_PIL_FILTER = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, slots=True, kw_only=True)
class SquarePixels:
    """How a network wants its images: resized to a square, the whole image, and normalised.

    Attributes:
        size: pixels of a side.
        resample: "bilinear" or "bicubic", with antialiasing in both modes.
        mean, std: per channel, of pixels in [0, 1].
        mode: which of the two ways.
    """

    size: int
    resample: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    mode: Preprocessing = Preprocessing.PUBLISHED

    def __call__(self, images: UInt8Array, device: torch.device) -> Tensor:
        """Return float32 [n, 3, size, size] on `device` of uint8 RGB [n, height, width, 3] images."""
        if self.mode is Preprocessing.PUBLISHED:
            return torch.from_numpy(self._by_pil(images)).to(device)
        # Tensors on arrays that must not be written to make torch warn; such arrays are copied.
        return self._by_tensors(torch.from_numpy(np.require(images, requirements="W")).to(device))

    def _by_pil(self, images: UInt8Array) -> Float32Array:
        size = (self.size, self.size)
        if images.shape[1:3] != size:
            resampling = _PIL_FILTER[self.resample]
            images = np.stack(
                [np.asarray(Image.fromarray(image).resize(size, resampling)) for image in images]
            )
        scaled = images.astype(np.float32) / np.float32(255.0)
        normalised = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))

    def _by_tensors(self, images: Tensor) -> Tensor:
        levels = images.permute(0, 3, 1, 2)
        if levels.shape[2:] != (self.size, self.size):
            # On CPUs torch works in integers, as PIL does; elsewhere it rounds floats.
            on_cpu = levels.device.type == "cpu"
            resized = F.interpolate(
                levels if on_cpu else levels.float(),
                size=(self.size, self.size),
                mode=self.resample,
                antialias=True,
            )
            levels = resized if on_cpu else resized.round_().clamp_(0, 255)
        pixels = levels.float() / 255.0
        shape = (1, 3, 1, 1)
        normalised = (pixels - pixels.new_tensor(self.mean).view(shape)) / pixels.new_tensor(self.std).view(
            shape
        )
        # Convolutions round by how their input lies in memory: as in the other mode, channels first.
        return normalised.contiguous()
