"""The published scale schedules: one list of 13 scales per aspect ratio; an image size keeps a prefix."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.types import ScaleSchedule

PATCH_PIXELS = 16
"""Pixels per token side in published models, with and without spatial patchify."""

SCALES_OF_SIZE = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
"""Published names of image sizes (pixels) and how many scales each keeps."""

_PORTRAIT = {
    3.0: "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
    2.5: "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    2.0: "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    1.75: "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    1.5: "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    1.333: "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    1.25: "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    1.0: "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
}
_LANDSCAPE_OF = {0.8: 1.25, 0.75: 1.333, 0.666: 1.5, 0.571: 1.75, 0.5: 2.0, 0.4: 2.5, 0.333: 3.0}


def _parse(line: str) -> ScaleSchedule:
    sizes = (pair.split("x") for pair in line.split())
    return tuple((int(height), int(width)) for height, width in sizes)


FULL_SCHEDULES: dict[float, ScaleSchedule] = {ratio: _parse(line) for ratio, line in _PORTRAIT.items()} | {
    ratio: tuple((w, h) for h, w in _parse(_PORTRAIT[portrait])) for ratio, portrait in _LANDSCAPE_OF.items()
}
"""All 13 scales of each aspect ratio (height / width)."""

ASPECT_RATIOS = {
    "1:1": 1.0,
    "4:5": 1.25,
    "5:4": 0.8,
    "3:4": 1.333,
    "4:3": 0.75,
    "2:3": 1.5,
    "3:2": 0.666,
    "4:7": 1.75,
    "7:4": 0.571,
    "1:2": 2.0,
    "2:1": 0.5,
    "2:5": 2.5,
    "5:2": 0.4,
    "1:3": 3.0,
    "3:1": 0.333,
}
"""Width to height of each template, and its published name: height / width."""

_TIE_ORDER = (1.0, 1.25, 0.8, 1.333, 0.75, 1.5, 0.666, 1.75, 0.571, 2.0, 0.5, 2.5, 0.4, 3.0, 0.333)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """One published image size.

    Attributes:
        aspect: height / width of the template.
        schedule: (h, w) tokens per scale.
        rope_grid: last entry of the full schedule: positions are stretched to it at every image size.
    """

    aspect: float
    schedule: ScaleSchedule
    rope_grid: tuple[int, int]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.schedule[-1]
        return height * PATCH_PIXELS, width * PATCH_PIXELS


def nearest_aspect(ratio: float) -> float:
    """Return the template closest to an aspect ratio; ties go to the published order."""
    return min(_TIE_ORDER, key=lambda template: abs(template - ratio))


def height_over_width(aspect_ratio: str) -> float:
    """Return height / width of an aspect ratio written width:height, such as "16:9".

    Raises:
        ConfigurationError: written otherwise.
    """
    width, colon, height = aspect_ratio.partition(":")
    try:
        ratio = float(height) / float(width) if colon else math.nan
    except (ValueError, ZeroDivisionError):
        ratio = math.nan
    if not 0 < ratio < math.inf:
        raise ConfigurationError(
            f"aspect_ratio: expected width:height, such as {', '.join(ASPECT_RATIOS)}, got {aspect_ratio!r}"
        )
    return ratio


def published_resolution(size: str, ratio: float = 1.0) -> Resolution:
    """Return the published scales of an image size ("0.06M", "0.25M", "0.60M", "1M").

    Args:
        size: a key of `SCALES_OF_SIZE`.
        ratio: height / width; the nearest template is taken, as published.

    Raises:
        ConfigurationError: an unknown size, or a ratio that is not a positive number.
    """
    if size not in SCALES_OF_SIZE:
        raise ConfigurationError(f"size: expected one of {', '.join(SCALES_OF_SIZE)}, got {size!r}")
    if not 0 < ratio < math.inf:
        raise ConfigurationError(f"aspect: expected height / width above 0, got {ratio}")
    aspect = nearest_aspect(ratio)
    full = FULL_SCHEDULES[aspect]
    return Resolution(aspect=aspect, schedule=full[: SCALES_OF_SIZE[size]], rope_grid=full[-1])
