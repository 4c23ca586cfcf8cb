"""From an image to a detector's pixels as mmdet makes them: OpenCV's bilinear resizing, without OpenCV."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttsvar_ray.types import Float32Array, Int64Array, UInt8Array

LONGER, SHORTER = 1333, 800
"""An image is scaled, up or down, until one of its sides has this many pixels and none has more."""
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
STEP = 32
"""Pixels are padded, right and below, to a multiple of this."""

_BITS = 11
_ONE = 1 << _BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorPixels:
    """One image as a detector reads it.

    Attributes:
        tensor: float32 [1, 3, padded height, padded width].
        height, width: of what is image in it.
    """

    tensor: Tensor
    height: int
    width: int


def detector_pixels(image: UInt8Array, *, longer: int = LONGER, shorter: int = SHORTER) -> DetectorPixels:
    """Return the pixels of a uint8 RGB image [height, width, 3]."""
    scale = min(longer / max(image.shape[:2]), shorter / min(image.shape[:2]))
    height, width = (int(side * scale + 0.5) for side in image.shape[:2])
    levels = resize_bilinear(image, height, width)
    mean, factor = np.array(MEAN, np.float32), (1 / np.array(STD)).astype(np.float32)
    normalised = (levels.astype(np.float32) - mean) * factor
    # After normalising: what is padded is the mean colour.
    padded = np.zeros((3, height + -height % STEP, width + -width % STEP), np.float32)
    padded[:, :height, :width] = normalised.transpose(2, 0, 1)
    return DetectorPixels(tensor=torch.from_numpy(padded)[None], height=height, width=width)


def resize_bilinear(image: UInt8Array, height: int, width: int) -> UInt8Array:
    """Return uint8 [height, width, channels] as `cv2.resize` makes it with INTER_LINEAR: no antialiasing.

    Weights have 11 bits, and the two passes round as OpenCV's vector code does.
    """
    left, right = _weights(image.shape[1], width, clips=True)
    above, below = _weights(image.shape[0], height, clips=False)
    levels = image.astype(np.int32)
    rows = levels[:, left.place] * left.weight[:, None] + levels[:, right.place] * right.weight[:, None]
    # Four bits are dropped before the second pass, so that products fit 32 bits there.
    rows >>= 4
    first = (rows[above.place] * above.weight[:, None, None]) >> 16
    first += (rows[below.place] * below.weight[:, None, None]) >> 16
    resized: UInt8Array = np.clip((first + 2) >> 2, 0, 255).astype(np.uint8)
    return resized


@dataclass(frozen=True, slots=True)
class _Taps:
    """One of the two neighbours along an axis: int64 places and int32 weights of each new position."""

    place: Int64Array
    weight: np.ndarray


def _weights(old: int, new: int, *, clips: bool) -> tuple[_Taps, _Taps]:
    """Return the neighbours before and after each new position.

    Args:
        old, new: pixels of the axis.
        clips: beyond the border the border pixel counts whole; else it counts twice, by both weights, which
            rounds differently.
    """
    scale = 1.0 / (new / old)
    position: Float32Array = ((np.arange(new) + 0.5) * scale - 0.5).astype(np.float32)
    place = np.floor(position).astype(np.int64)
    part = position - place.astype(np.float32)
    if clips:
        part[(place < 0) | (place >= old - 1)] = 0
    after = np.rint(part * np.float32(_ONE)).astype(np.int32)
    before = np.rint((1 - part) * np.float32(_ONE)).astype(np.int32)
    return (
        _Taps(np.clip(place, 0, old - 1), before),
        _Taps(np.clip(place + 1, 0, old - 1), after),
    )
