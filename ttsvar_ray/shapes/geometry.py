"""The five shapes of the world: signed distances, outlines and extents at unit radius.

The set was chosen for identity at coarse scales. Every pair was blurred to the resolution of a 6x6 (12x12)
token grid and compared at the best relative size and angle: circle, ring, cross, bar and moon are never
closer than 0.20 (0.41) in relative L2 distance, whereas a circle and a square are at 0.05 (0.14).

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
_MOON_TIP = (MOON_OUTER**2 - MOON_INNER**2 + MOON_OFFSET**2) / (2 * MOON_OFFSET)
MOON_SHIFT = (MOON_OUTER - _MOON_TIP) / 2


def signed_distance(shape: Shape, x: FloatArray, y: FloatArray) -> FloatArray:
    """Return the signed distance of points to a shape of unit radius (negative inside).

    Exact along the edges; at corners it is the Chebyshev bound, which only sharpens an anti-aliased corner.

    Args:
        shape: which shape.
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


def _outline(shape: Shape) -> npt.NDArray[np.float64]:
    """Return points of the outer outline of a shape that span its convex hull, float64 [num_points, 2]."""
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    unit = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    if shape is Shape.CIRCLE:
        return unit
    if shape is Shape.RING:
        return unit * (RING_MIDLINE + RING_HALF_WIDTH)
    if shape is Shape.BAR:
        return _with_mirrored([(-BAR_LENGTH, -BAR_HALF_WIDTH), (BAR_LENGTH, -BAR_HALF_WIDTH)])
    if shape is Shape.CROSS:
        return _with_mirrored([(-CROSS_LENGTH, -CROSS_HALF_WIDTH), (-CROSS_LENGTH, CROSS_HALF_WIDTH),
                         (-CROSS_HALF_WIDTH, -CROSS_LENGTH), (CROSS_HALF_WIDTH, -CROSS_LENGTH)])  # fmt: skip
    tip_y = np.sqrt(MOON_OUTER**2 - _MOON_TIP**2)
    points = np.concatenate([unit * MOON_OUTER, [[_MOON_TIP, -tip_y], [_MOON_TIP, tip_y]]])
    inside = np.hypot(points[:, 0] - MOON_OFFSET, points[:, 1]) >= MOON_INNER - 1e-9
    return np.asarray(points[inside] + np.array([MOON_SHIFT, 0.0]))


def _with_mirrored(corners: list[tuple[float, float]]) -> npt.NDArray[np.float64]:
    """Return corners and their mirror images through the origin."""
    half = np.array(corners)
    return np.concatenate([half, -half])


OUTLINES: dict[Shape, npt.NDArray[np.float64]] = {shape: _outline(shape) for shape in SHAPES}
"""Outline points per shape, float64 [num_points, 2], at unit radius and angle 0."""

REACH: dict[Shape, float] = {
    shape: float(np.hypot(points[:, 0], points[:, 1]).max()) for shape, points in OUTLINES.items()
}
"""Largest distance of a shape's outline from its centre, in radii."""


def _row(positions: list[float], radius: float) -> list[tuple[float, float, float]]:
    """Return discs of one radius along the x axis."""
    return [(position, 0.0, radius) for position in positions]


_ARM = _row([-0.92, -0.55, 0.55, 0.92], 0.38)
COVER: dict[Shape, npt.NDArray[np.float64]] = {
    # A hole or a notch is no room for another object, so rings and moons count as their outer disc.
    Shape.CIRCLE: np.array(_row([0.0], 1.0)),
    Shape.RING: np.array(_row([0.0], RING_MIDLINE + RING_HALF_WIDTH)),
    Shape.CROSS: np.array([(0.0, 0.0, 0.47), *_ARM, *((y, x, r) for x, y, r in _ARM)]),
    Shape.BAR: np.array(_row([-0.9, -0.3, 0.3, 0.9], 0.52)),
    Shape.MOON: np.array(_row([MOON_SHIFT], MOON_OUTER)),
}
"""Discs (x, y, radius) that cover a shape of unit radius, to keep objects apart: float64 [num_discs, 3]."""
