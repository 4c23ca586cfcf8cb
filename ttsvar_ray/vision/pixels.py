"""From an image to a network's pixels: the published ways, each as a value, and a faster way beside it.

Networks differ in what their authors did with an image that is not square (cut, pad, stretch), in the filter,
and in whose arithmetic was used; the last bits of the pixels follow from it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ttsvar_ray.types import Float32Array, Preprocessing, UInt8Array
from ttsvar_ray.vision.exact_resize import Order, pillow_order, resize_levels

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


class Fit(str, enum.Enum):
    """How an image becomes a square."""

    CROP = "crop"
    """The shorter side is resized, the longer one loses its ends."""
    PAD = "pad"
    """The longer side is resized, black fills the rest evenly."""
    STRETCH = "stretch"
    """Both sides are resized, whatever the aspect ratio."""


class Resample(str, enum.Enum):
    """The filter, by torch's name; PIL has it under the same name in capitals."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Library(str, enum.Enum):
    """Whose arithmetic the published preprocessing uses."""

    TORCHVISION = "torchvision"
    """Levels divided by 255 in float32; the centre of an odd margin rounds half to even."""
    TRANSFORMERS = "transformers"
    """Levels times 1/255 in float64, then float32 (its image processors on PIL); centres round down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelRecipe:
    """How uint8 images become the float32 pixels of a network's square input.

    Attributes:
        size: pixels of a side of the network's input.
        fit: how an image becomes a square.
        resample: filter of every resizing, with antialiasing.
        mean, std: per channel, of pixels in [0, 1].
        library: whose arithmetic.
        preprocessing: `PUBLISHED`, or `TENSOR`: resized by torch to 8-bit levels, on the network's device.
            The published way of PAD resizes (float) tensors too, so for it both are one.
    """

    size: int
    fit: Fit = Fit.CROP
    resample: Resample = Resample.BICUBIC
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    library: Library = Library.TORCHVISION
    preprocessing: Preprocessing = Preprocessing.PUBLISHED

    def apply(self, images: UInt8Array, device: torch.device) -> Tensor:
        """Return float32 [n, 3, size, size].

        Args:
            images: uint8 RGB [n, height, width, 3].
            device: where tensors are resized; PIL works on the CPU, and its pixels stay there. On a GPU
                its arithmetic is done on the device, to the same pixels (`vision.exact_resize`).
        """
        if self.fit is Fit.PAD:
            return self._normalise(self._pad(_to_tensor(images, device).float() / 255.0))
        if self.preprocessing is Preprocessing.TENSOR:
            return self._normalise(self._fit_tensors(_to_tensor(images, device)).float() / 255.0)
        if device.type == "cuda" and self.is_exact_on_device(*images.shape[1:3]):
            return self.apply_exactly(images, device)
        if images.shape[1:3] != (self.size, self.size):
            fitted = [np.asarray(self._fit_image(Image.fromarray(image))) for image in images]
            images = np.stack(fitted) if fitted else np.zeros((0, self.size, self.size, 3), np.uint8)
        levels = self._levels()
        channels = [levels[channel][images[..., channel]] for channel in range(3)]
        return torch.from_numpy(np.stack(channels, axis=1))

    def is_exact_on_device(self, height: int, width: int) -> bool:
        """Whether `apply_exactly` gives the published pixels of images of this size."""
        return self._pillow_order(height, width) is not None

    def apply_exactly(self, images: UInt8Array, device: torch.device) -> Tensor:
        """Return the published pixels float32 [n, 3, size, size], bit for bit, made on a device.

        Args:
            images: uint8 RGB [n, height, width, 3], of a size for which it `is_exact_on_device`.
            device: any that has float64.
        """
        height, width = images.shape[1:3]
        order = self._pillow_order(height, width)
        assert order is not None, f"{height} x {width} images: Pillow rounds otherwise"
        to_height, to_width = self._fitted(height, width)
        levels = resize_levels(_to_tensor(images, device), to_height, to_width, self.resample.value, order)
        levels = self._centre(levels)
        table = to_device(torch.from_numpy(self._levels()), device)
        return torch.stack([table[channel][levels[:, channel].long()] for channel in range(3)], dim=1)

    def _pillow_order(self, height: int, width: int) -> Order | None:
        return pillow_order((height, width), self._fitted(height, width), self.resample.value)

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after resizing, before the ends are cut off."""
        return (self.size, self.size) if self.fit is Fit.STRETCH else self._cover(width, height)[::-1]

    def _centre(self, levels_BCHW: Tensor) -> Tensor:
        top, left = (self._margin(side) for side in levels_BCHW.shape[2:])
        return levels_BCHW[:, :, top : top + self.size, left : left + self.size]

    def _levels(self) -> Float32Array:
        """Return float32 [3, 256]: what each of the 256 levels becomes in each channel."""
        levels = np.arange(256, dtype=np.uint8)
        if self.library is Library.TORCHVISION:
            unit = levels.astype(np.float32) / np.float32(255.0)
        else:
            unit = (levels.astype(np.float64) * (1 / 255)).astype(np.float32)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        normalised: Float32Array = (unit[None, :] - mean[:, None]) / std[:, None]
        return normalised

    def _fit_image(self, image: Image.Image) -> Image.Image:
        resampling = Image.Resampling[self.resample.name]
        if self.fit is Fit.STRETCH:
            return image.resize((self.size, self.size), resampling)
        width, height = self._cover(image.width, image.height)
        if (width, height) != image.size:
            image = image.resize((width, height), resampling)
        left, top = self._margin(width), self._margin(height)
        return image.crop((left, top, left + self.size, top + self.size))

    def _fit_tensors(self, levels_BCHW: Tensor) -> Tensor:
        """Return uint8 levels as a square."""
        return self._centre(self._resize_levels(levels_BCHW, *self._fitted(*levels_BCHW.shape[2:])))

    def _pad(self, unit_BCHW: Tensor) -> Tensor:
        """Fit the longer side and pad with black; overshoot is kept.

        Source: the preprocessing of HPSv2.
        Differs: an image whose longer side has exactly `size` pixels is padded too; the published code
            forgets it, and then fails.
        """
        height, width = unit_BCHW.shape[2:]
        scale = self.size / float(max(height, width))
        height, width = round(height * scale), round(width * scale)
        resized = self._resize(unit_BCHW, height, width)
        rows, columns = self.size - height, self.size - width
        return F.pad(resized, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))

    def _resize(self, pixels_BCHW: Tensor, height: int, width: int) -> Tensor:
        if pixels_BCHW.shape[2:] == (height, width):
            return pixels_BCHW
        return F.interpolate(pixels_BCHW, size=(height, width), mode=self.resample.value, antialias=True)

    def _resize_levels(self, levels_BCHW: Tensor, height: int, width: int) -> Tensor:
        """Return resized uint8 levels: on CPUs in integers, as PIL does it; elsewhere rounded from floats."""
        if levels_BCHW.device.type == "cpu":
            return self._resize(levels_BCHW, height, width)
        return self._resize(levels_BCHW.float(), height, width).round_().clamp_(0, 255).to(torch.uint8)

    def _cover(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) whose shorter side is `size`."""
        shorter = min(width, height)
        return int(self.size * width / shorter), int(self.size * height / shorter)

    def _margin(self, side: int) -> int:
        """Return how much of a side is cut off before the centre square."""
        margin = side - self.size
        return margin // 2 if self.library is Library.TRANSFORMERS else round(margin / 2.0)

    def _normalise(self, unit_BCHW: Tensor) -> Tensor:
        shape = (1, 3, 1, 1)
        mean, std = (to_device(torch.tensor(each), unit_BCHW.device) for each in (self.mean, self.std))
        return (unit_BCHW - mean.view(shape)) / std.view(shape)


def _to_tensor(images: UInt8Array, device: torch.device) -> Tensor:
    """Return uint8 [n, 3, height, width]."""
    # Tensors on arrays that must not be written to make torch warn; such arrays are copied.
    writable = np.require(images, requirements="W")
    return to_device(torch.from_numpy(writable), device).permute(0, 3, 1, 2)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; to a GPU through pinned memory, and without waiting for it."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
