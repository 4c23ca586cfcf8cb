"""What the built-in world is made of: five shapes, six colours, four relations.

The set of shapes was chosen for identity at coarse scales. Every pair was blurred to the resolution of a 6x6
(12x12) token grid and compared at the best relative size and angle: circle, ring, cross, bar and moon are
never closer than 0.20 (0.41) in relative L2 distance, whereas a circle and a square are at 0.05 (0.14).

Coordinates are x right, y down, in units of the object's radius.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]


class Shape(str, enum.Enum):
    """What an object is; the value is the word used in captions."""

    CIRCLE = "circle"
    RING = "ring"
    CROSS = "cross"
    BAR = "bar"
    MOON = "moon"


SHAPES: tuple[Shape, ...] = tuple(Shape)
"""Shapes in the order of their class index."""
RING_MIDLINE, RING_HALF_WIDTH = 0.80, 0.26
CROSS_LENGTH, CROSS_HALF_WIDTH = 1.15, 0.30
BAR_LENGTH, BAR_HALF_WIDTH = 1.20, 0.42
MOON_OUTER, MOON_INNER, MOON_OFFSET = 1.10, 0.85, 0.60
# The crescent spans [-1.10, tip]; shifting it by this much puts the middle of its box at the origin.
MOON_TIP = (MOON_OUTER**2 - MOON_INNER**2 + MOON_OFFSET**2) / (2 * MOON_OFFSET)
MOON_SHIFT = (MOON_OUTER - MOON_TIP) / 2


def signed_distance(shape: Shape, x: FloatArray, y: FloatArray) -> FloatArray:
    """Return the signed distance of points to a shape of unit radius (negative inside).

    Exact along the edges; at corners it is the Chebyshev bound, which only sharpens an anti-aliased corner.

    Args:
        x, y: coordinates in the object's own frame, any shape, in radii.
    """
    if shape is Shape.CIRCLE:
        return np.asarray(np.hypot(x, y) - 1.0)
    if shape is Shape.RING:
        return np.asarray(np.abs(np.hypot(x, y) - RING_MIDLINE) - RING_HALF_WIDTH)
    if shape is Shape.MOON:
        left = x - MOON_SHIFT
        outer, inner = np.hypot(left, y) - MOON_OUTER, MOON_INNER - np.hypot(left - MOON_OFFSET, y)
        return np.asarray(np.maximum(outer, inner))
    horizontal, vertical = np.abs(x), np.abs(y)
    if shape is Shape.BAR:
        return np.maximum(horizontal - BAR_LENGTH, vertical - BAR_HALF_WIDTH)
    long = np.maximum(horizontal, vertical)
    short = np.minimum(horizontal, vertical)
    return np.maximum(long - CROSS_LENGTH, short - CROSS_HALF_WIDTH)


Rgb = tuple[int, int, int]


class Color(str, enum.Enum):
    """What colour an object has; the value is the word used in captions."""

    RED = "red"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    PURPLE = "purple"
    CYAN = "cyan"


COLORS: tuple[Color, ...] = tuple(Color)
"""Colours in the order of their class index."""
PALETTE: dict[Color, Rgb] = {
    Color.RED: (220, 40, 40),
    Color.GREEN: (40, 165, 60),
    Color.BLUE: (45, 80, 225),
    Color.YELLOW: (242, 205, 35),
    Color.PURPLE: (160, 45, 180),
    Color.CYAN: (40, 200, 220),
}


class Relation(str, enum.Enum):
    """Where the first object is, seen from the second."""

    LEFT = "left of"
    RIGHT = "right of"
    ABOVE = "above"
    BELOW = "below"
