"""Scenes of the built-in world: values, and how they are drawn at random.

All lengths are fractions of the image side, so that one scene can be rendered at any size; outlines and
covers are in units of the object's radius, x right, y down.
"""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttsvar_ray.shapes.world import (
    BAR_HALF_WIDTH,
    BAR_LENGTH,
    COLORS,
    CROSS_HALF_WIDTH,
    CROSS_LENGTH,
    MOON_INNER,
    MOON_OFFSET,
    MOON_OUTER,
    MOON_SHIFT,
    MOON_TIP,
    PALETTE,
    RING_HALF_WIDTH,
    RING_MIDLINE,
    SHAPES,
    Color,
    Relation,
    Rgb,
    Shape,
)


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
    tip_y = np.sqrt(MOON_OUTER**2 - MOON_TIP**2)
    points = np.concatenate([unit * MOON_OUTER, [[MOON_TIP, -tip_y], [MOON_TIP, tip_y]]])
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
MAX_OBJECTS = 4
"""Of a scene that is drawn without a caption, or for one of GenEval's kinds."""
CROWD = 6
"""Objects of a scene at most: four of one shape and two of another."""
COLOR_JITTER = 12
"""Largest deviation of a drawn colour from its palette entry, per channel."""
BACKGROUND_DISTANCE = 110.0
"""Least Euclidean RGB distance of a background to every palette colour."""
LARGE_RADIUS = (11 / 64, 15 / 64)
"""Radii with one or two objects."""
SMALL_RADIUS = (9 / 64, 12 / 64)
"""Radii with three or four objects."""
CROWD_RADIUS = (7 / 64, 9 / 64)
"""Radii with five or six objects, or three that may have to stand in a row."""
MAX_ANGLE = 0.3
"""Largest rotation in radians, either way."""
GAP = 3 / 64
"""Least distance between two objects."""
MARGIN = 1.5 / 64
"""Least distance of an object to the image edge."""
CLEAR_RATIO = 2.0
"""An offset shows a relation when it is this many times longer along its axis than across. GenEval names each
direction whose share of the offset is above 1/2; no second one is named beside so clear a one."""
_TRIES = 32
"""Places tried for one object before the whole scene is drawn afresh; 16 times more where room is scarce."""
_ROWS = 1024
"""Places tried for objects in relation, all of them at once, before the scene is drawn afresh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One drawn object.

    Attributes:
        shape, color: what captions speak of.
        x, y: centre as a fraction of the side, x right, y down.
        radius: nominal radius, fraction of the side (outlines reach up to 1.27 radii).
        angle: rotation in radians, clockwise on screen.
        rgb: the colour actually painted (palette entry with jitter).
    """

    shape: Shape
    color: Color
    x: float
    y: float
    radius: float
    angle: float
    rgb: Rgb


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A background and one to six objects that do not touch."""

    background: Rgb
    objects: tuple[SceneObject, ...]


def sample_scene(
    rng: np.random.Generator,
    items: Sequence[tuple[Shape, Color]] | None = None,
    relations: Sequence[Relation] = (),
) -> Scene:
    """Draw a scene.

    Args:
        rng: source of every choice.
        items: shape and colour of each object; None draws 1 to 4 objects uniformly.
        relations: where each object must be, seen from the next one, with room to spare; none, or one fewer
            than there are items.

    Raises:
        ValueError: not 1 to 6 items, or another number of relations.
    """
    if items is None:
        items = [
            (SHAPES[rng.integers(len(SHAPES))], COLORS[rng.integers(len(COLORS))])
            for _ in range(int(rng.integers(1, MAX_OBJECTS + 1)))
        ]
    if not 1 <= len(items) <= CROWD:
        raise ValueError(f"items: expected 1 to {CROWD} objects, got {len(items)}")
    if relations and len(items) != len(relations) + 1:
        raise ValueError(f"relations: {len(relations)} need one object more, got {len(items)}")
    background = _sample_background(rng)
    while True:
        objects = _try_place(rng, items, relations)
        if objects is not None:
            return Scene(background=background, objects=objects)


def clear_relation(a: SceneObject, b: SceneObject) -> Relation | None:
    """Return where `a` is, seen from `b`, or None when the offset is too diagonal to be named by one word."""
    dx, dy = np.array([a.x - b.x]), np.array([a.y - b.y])
    return next(
        (relation for relation in Relation if _relation_holds(dx, dy, relation)[0]),
        None,
    )


def _sample_background(rng: np.random.Generator) -> Rgb:
    """Draw a light (40 %), dark (30 %) or tinted (30 %) colour well apart from the palette."""
    palette = np.array(list(PALETTE.values()), dtype=np.float64)
    while True:
        kind = rng.random()
        if kind < 0.4:
            rgb = rng.uniform(215, 250) + rng.uniform(-6, 6, size=3)
        elif kind < 0.7:
            rgb = rng.uniform(8, 50) + rng.uniform(-6, 6, size=3)
        else:
            saturation, value = rng.uniform(0.08, 0.28), rng.uniform(0.35, 0.95)
            rgb = 255 * np.array(colorsys.hsv_to_rgb(rng.random(), saturation, value))
        rgb = np.clip(np.rint(rgb), 0, 255)
        if np.sqrt(((palette - rgb) ** 2).sum(axis=1)).min() >= BACKGROUND_DISTANCE:
            return int(rgb[0]), int(rgb[1]), int(rgb[2])


def _try_place(
    rng: np.random.Generator,
    items: Sequence[tuple[Shape, Color]],
    relations: Sequence[Relation],
) -> tuple[SceneObject, ...] | None:
    """Place the objects; None when one finds no room, so that the caller draws all afresh."""
    low, high = LARGE_RADIUS if len(items) <= 2 else SMALL_RADIUS
    if len(items) > MAX_OBJECTS or len(relations) > 1:
        low, high = CROWD_RADIUS
    radii = [float(rng.uniform(low, high)) for _ in items]
    angles = [float(rng.uniform(-MAX_ANGLE, MAX_ANGLE)) for _ in items]
    bounds, discs = [], []
    for (shape, _), radius, angle in zip(items, radii, angles, strict=True):
        cosine, sine = math.cos(angle), math.sin(angle)
        turn = radius * np.array([[cosine, sine], [-sine, cosine]])
        outline = OUTLINES[shape] @ turn
        bounds.append((MARGIN - outline.min(axis=0), 1 - MARGIN - outline.max(axis=0)))
        discs.append(np.column_stack([COVER[shape][:, :2] @ turn, radius * COVER[shape][:, 2]]))
    centers = (_related if relations else _scattered)(rng, bounds, discs, relations)
    if centers is None:
        return None
    placed: list[SceneObject] = []
    for (shape, color), center, radius, angle in zip(items, centers, radii, angles, strict=True):
        jitter = rng.integers(-COLOR_JITTER, COLOR_JITTER + 1, size=3)
        rgb = np.clip(np.array(PALETTE[color]) + jitter, 0, 255).tolist()
        placed.append(
            SceneObject(
                shape=shape,
                color=color,
                x=float(center[0]),
                y=float(center[1]),
                radius=radius,
                angle=angle,
                rgb=(rgb[0], rgb[1], rgb[2]),
            )
        )
    order = range(len(placed)) if relations else rng.permutation(len(placed))
    return tuple(placed[int(i)] for i in order)


_Bounds = Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]
_Discs = Sequence[npt.NDArray[np.float64]]


def _scattered(
    rng: np.random.Generator, bounds: _Bounds, discs: _Discs, _: Sequence[Relation]
) -> npt.NDArray[np.float64] | None:
    """Place objects one by one: centres [num_objects, 2], or None when one finds no room."""
    centers, taken = np.empty((0, 2)), np.empty((0, 3))
    tries = _TRIES if len(discs) <= MAX_OBJECTS else 16 * _TRIES
    for (low, high), own in zip(bounds, discs, strict=True):
        tried = rng.uniform(low, high, (tries, 2))
        free = _has_room(tried, own, taken)
        if not free.any():
            return None
        center = tried[int(free.argmax())]
        centers = np.concatenate([centers, center[None]])
        taken = np.concatenate([taken, own + np.array([center[0], center[1], 0.0])])
    return centers


def _related(
    rng: np.random.Generator, bounds: _Bounds, discs: _Discs, relations: Sequence[Relation]
) -> npt.NDArray[np.float64] | None:
    """Place objects in relation all at once, as few first places leave room for a row: as `_scattered`."""
    tried = np.stack([rng.uniform(low, high, (_ROWS, 2)) for low, high in bounds], axis=1)
    offset = tried[:, :-1] - tried[:, 1:]
    held = [
        _relation_holds(offset[:, at, 0], offset[:, at, 1], relation) for at, relation in enumerate(relations)
    ]
    tried = tried[np.all(held, axis=0)]
    for a, b in itertools.combinations(range(len(discs)), 2):
        tried = tried[_has_room(tried[:, a] - tried[:, b], discs[a], discs[b])]
    return tried[0] if len(tried) else None


def _has_room(
    centers: npt.NDArray[np.float64],
    discs: npt.NDArray[np.float64],
    taken: npt.NDArray[np.float64],
) -> npt.NDArray[np.bool_]:
    """Return which centres [tries, 2] keep discs [num_discs, 3] a gap away from others: bool [tries]."""
    if not len(taken):
        return np.ones(len(centers), dtype=np.bool_)
    offset = discs[:, None, :2] - taken[None, :, :2]
    reach = discs[:, None, 2] + taken[None, :, 2] + GAP
    dx = centers[:, 0, None, None] + offset[None, :, :, 0]
    dy = centers[:, 1, None, None] + offset[None, :, :, 1]
    return np.asarray((dx * dx + dy * dy >= reach * reach).all(axis=(1, 2)))


def _relation_holds(
    dx: npt.NDArray[np.float64], dy: npt.NDArray[np.float64], relation: Relation
) -> npt.NDArray[np.bool_]:
    """Whether offsets from the second object to the first clearly show a relation."""
    if relation in (Relation.LEFT, Relation.RIGHT):
        along, across = (dx if relation is Relation.RIGHT else -dx), dy
    else:
        along, across = (dy if relation is Relation.BELOW else -dy), dx
    return np.asarray(along >= CLEAR_RATIO * np.abs(across))
