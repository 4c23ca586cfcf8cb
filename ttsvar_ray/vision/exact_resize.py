"""Pillow's resizing of 8-bit images as two matrix products, on any device: the same levels, to the bit.

Pillow resizes one side, then the other; each pass is a sum of at most a few dozen levels times weights that
are rounded to 22 binary places, and is rounded to a level again. All of it are integers below 2^53, so that
products of float64 matrices give them exactly, in whatever order a device sums. Which side comes first is
Pillow's choice and differs between its versions, so Pillow itself is asked, once for each pair of sizes.
"""

from __future__ import annotations

import enum
import functools
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ttsvar_ray.types import Float64Array

WEIGHT_BITS = 22
"""Binary places of a weight: 32, less 8 of a level, less 2 for overshoot."""
_ONE = 2.0**WEIGHT_BITS

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""By filter: how far it reaches, in pixels of the smaller image."""


class Order(enum.Enum):
    """Which side is resized first."""

    WIDTH = enum.auto()
    HEIGHT = enum.auto()


def resize_levels(levels_BCHW: Tensor, height: int, width: int, resample: str, order: Order) -> Tensor:
    """Return uint8 [B, C, height, width], the levels that Pillow makes of uint8 [B, C, H, W].

    Args:
        levels_BCHW: on any device that has float64.
        height, width: of the result.
        resample: a key of `SUPPORT`.
        order: what `pillow_order` says of these sizes.
    """
    resize = {
        Order.WIDTH: lambda levels: _resize_width(levels, width, resample),
        Order.HEIGHT: lambda levels: _resize_width(levels.mT, height, resample).mT,
    }
    first, second = (Order.WIDTH, Order.HEIGHT) if order is Order.WIDTH else (Order.HEIGHT, Order.WIDTH)
    return resize[second](resize[first](levels_BCHW))


@functools.lru_cache(maxsize=64)
def pillow_order(old: tuple[int, int], new: tuple[int, int], resample: str) -> Order | None:
    """Return in which order the installed Pillow resizes; None where it does neither, bit for bit.

    Args:
        old, new: (height, width) in pixels.
        resample: a key of `SUPPORT`.
    """
    # Black and white overshoot, so that the two orders differ.
    levels = np.random.default_rng(0).integers(0, 2, (*old, 3), dtype=np.uint8) * np.uint8(255)
    made = np.asarray(Image.fromarray(levels).resize(new[::-1], Image.Resampling[resample.upper()]))
    given = torch.from_numpy(levels).permute(2, 0, 1)[None]
    for order in Order:
        ours = resize_levels(given, *new, resample, order)[0].permute(1, 2, 0).numpy()
        if np.array_equal(ours, made):
            return order
    return None


def _resize_width(levels: Tensor, width: int, resample: str) -> Tensor:
    old = levels.shape[-1]
    if width == old:
        return levels
    return _to_levels(levels.double() @ _weights_on(levels.device, old, width, resample))


@functools.lru_cache(maxsize=64)
def _weights_on(device: torch.device, old: int, new: int, resample: str) -> Tensor:
    """Return float64 [old, new] on a device."""
    return torch.from_numpy(_filter_weights(old, new, resample).T.copy()).to(device)


def _to_levels(sums: Tensor) -> Tensor:
    return ((sums + _ONE / 2) / _ONE).floor_().clamp_(0, 255).to(torch.uint8)


def _filter_weights(old: int, new: int, resample: str) -> Float64Array:
    """Return float64 [new, old]: the whole numbers by which old pixels count in new ones.

    Args:
        old, new: pixels of a side.
        resample: a key of `SUPPORT`.
    """
    scale = old / new
    stretch = max(scale, 1.0)
    reach = SUPPORT[resample] * stretch
    weights = np.zeros((new, old))
    for place in range(new):
        centre = (place + 0.5) * scale
        first, end = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), old)
        kernel = [_filter((pixel - centre + 0.5) / stretch, resample) for pixel in range(first, end)]
        # Added one by one, as it decides the last bit.
        total = sum(kernel)
        for pixel, value in enumerate(kernel, start=first):
            share = value / total if total else value
            weights[place, pixel] = math.trunc(share * _ONE + math.copysign(0.5, share))
    return weights


def _filter(x: float, resample: str) -> float:
    """Return a filter's value at a distance in pixels of the smaller image."""
    x = abs(x)
    if resample == "bilinear":
        return 1.0 - x if x < 1.0 else 0.0
    a = -0.5
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0
