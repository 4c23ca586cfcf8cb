"""Images that fail their caption the way a generator fails: for telling images of one prompt apart.

A search compares images of the same prompt, so the reward must see what goes wrong in images and not
only in words: an object missing or too many, another shape or colour, colours or places exchanged, objects
that touch, an object half gone or half in another colour. All labels follow from how the image was
made; the world's checker, which is what results are reported with, is never asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ttsvar_ray.shapes.captions import Caption, Kind
from ttsvar_ray.shapes.geometry import REACH, SHAPES, Shape
from ttsvar_ray.shapes.render import coverage_mask
from ttsvar_ray.shapes.reward_truth import is_false
from ttsvar_ray.shapes.scene import COLORS, PALETTE, Rgb, Scene, SceneObject
from ttsvar_ray.types import UInt8Array

MAX_SHOWN = 6
"""Most objects of a spoilt scene."""
_TRIES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """One object painted over, on one side of a line through its middle.

    Attributes:
        item: the object.
        angle: direction of the painted side, radians.
        rgb: the background to erase, or another colour.
    """

    item: SceneObject
    angle: float
    rgb: Rgb


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoilt:
    """A scene that no longer shows its caption.

    Attributes:
        scene: what is rendered.
        flaw: painted over the rendered image, or None.
    """

    scene: Scene
    flaw: Flaw | None = None


def spoil(scene: Scene, caption: Caption, rng: np.random.Generator) -> Spoilt | None:
    """Return a scene that fails a caption which is true of `scene`, or None where no try succeeded."""
    ways = _ways(caption)
    for _ in range(_TRIES):
        named = _named(scene, caption)
        item = named[int(rng.integers(len(named)))]
        way = ways[int(rng.integers(len(ways)))]
        spoilt = way(scene, item, rng)
        if spoilt is None:
            continue
        broken_by_hand = spoilt.flaw is not None or way is _touch
        if broken_by_hand or is_false(spoilt.scene, caption):
            return spoilt
    return None


def paint_flaw(image: UInt8Array, flaw: Flaw) -> UInt8Array:
    """Return the image [side, side, 3] with the flaw painted in."""
    side = len(image)
    places = (np.arange(side) + 0.5) / side
    across = (places[None, :] - flaw.item.x) * math.cos(flaw.angle)
    along = (places[:, None] - flaw.item.y) * math.sin(flaw.angle)
    # Half-covered edge pixels are painted over whole: else a rim of the old colour would stay.
    object_and_edge = np.clip(coverage_mask(flaw.item, side) * 8, 0, 1)
    painted = (np.clip((across + along) * side + 0.5, 0, 1) * object_and_edge)[:, :, None]
    return np.rint(image * (1 - painted) + np.array(flaw.rgb) * painted).astype(np.uint8)


_Way = Callable[[Scene, SceneObject, np.random.Generator], "Spoilt | None"]


def _ways(caption: Caption) -> tuple[_Way, ...]:
    """Return the ways a caption of this kind can be failed; a way that stands twice is taken more often."""
    common: tuple[_Way, ...] = (_remove, _reshape, _erase_half, _touch)
    if caption.kind is Kind.COUNTING:
        return (*common, _add, _add, _add, _remove)
    if caption.kind is Kind.POSITION:
        return (*common, _exchange_places, _exchange_places)
    if caption.kind is Kind.COLOR_ATTR:
        return (*common, _recolor, _two_colors, _exchange_colors, _exchange_colors)
    if caption.kind is Kind.COLORS:
        return (*common, _recolor, _two_colors)
    return common


def _named(scene: Scene, caption: Caption) -> list[SceneObject]:
    """Return the objects a caption speaks of."""
    return [
        item
        for item in scene.objects
        if any(item.shape is claim.shape and claim.color in (None, item.color) for claim in caption.claims)
    ]


def _with(scene: Scene, old: SceneObject, *new: SceneObject) -> Scene:
    """Return the scene with one object replaced by others (or by none)."""
    objects = [part for item in scene.objects for part in (new if item is old else (item,))]
    return replace(scene, objects=tuple(objects))


def _remove(scene: Scene, item: SceneObject, rng: np.random.Generator) -> Spoilt | None:
    return Spoilt(scene=_with(scene, item))


def _reshape(scene: Scene, item: SceneObject, rng: np.random.Generator) -> Spoilt | None:
    others = [shape for shape in SHAPES if shape is not item.shape]
    return Spoilt(scene=_with(scene, item, replace(item, shape=others[int(rng.integers(len(others)))])))


def _recolor(scene: Scene, item: SceneObject, rng: np.random.Generator) -> Spoilt | None:
    others = [color for color in COLORS if color is not item.color]
    color = others[int(rng.integers(len(others)))]
    return Spoilt(scene=_with(scene, item, replace(item, color=color, rgb=PALETTE[color])))


def _two_colors(scene: Scene, item: SceneObject, rng: np.random.Generator) -> Spoilt | None:
    others = [PALETTE[color] for color in COLORS if color is not item.color]
    rgb = others[int(rng.integers(len(others)))]
    return Spoilt(scene=scene, flaw=Flaw(item=item, angle=float(rng.uniform(0, 2 * math.pi)), rgb=rgb))


def _erase_half(scene: Scene, item: SceneObject, rng: np.random.Generator) -> Spoilt | None:
    if item.shape is Shape.BAR:
        return None  # half a bar is a bar
    angle = float(rng.uniform(0, 2 * math.pi))
    return Spoilt(scene=scene, flaw=Flaw(item=item, angle=angle, rgb=scene.background))


def _touch(scene: Scene, item: SceneObject, rng: np.random.Generator) -> Spoilt | None:
    """Move the object into another one: objects of this world never touch."""
    others = [other for other in scene.objects if other is not item]
    if not others:
        return None
    other = others[int(rng.integers(len(others)))]
    dx, dy = item.x - other.x, item.y - other.y
    near = rng.uniform(0.55, 0.85) * (item.radius + other.radius) / math.hypot(dx, dy)
    if near >= 1:
        return None
    return Spoilt(scene=_with(scene, item, replace(item, x=other.x + near * dx, y=other.y + near * dy)))


def _add(scene: Scene, item: SceneObject, rng: np.random.Generator) -> Spoilt | None:
    """Put one or two more of the same shape where there is room."""
    objects = list(scene.objects)
    for _ in range(int(rng.integers(1, 3))):
        radius = float(rng.uniform(0.8, 1.0)) * min(other.radius for other in scene.objects)
        reach = REACH[item.shape] * radius
        for x, y in rng.uniform(reach, 1 - reach, (40, 2)):
            distances = [
                math.hypot(x - other.x, y - other.y) - reach - REACH[other.shape] * other.radius
                for other in objects
            ]
            if min(distances) > 0 and len(objects) < MAX_SHOWN:
                objects.append(replace(item, x=float(x), y=float(y), radius=radius))
                break
    if len(objects) == len(scene.objects):
        return None
    return Spoilt(scene=replace(scene, objects=tuple(objects)))


def _exchange_places(scene: Scene, item: SceneObject, rng: np.random.Generator) -> Spoilt | None:
    """Exchange what two objects are, each keeping its place and size."""
    others = [other for other in scene.objects if other.shape is not item.shape]
    if not others:
        return None
    other = others[int(rng.integers(len(others)))]
    first = replace(item, shape=other.shape, color=other.color, rgb=other.rgb)
    second = replace(other, shape=item.shape, color=item.color, rgb=item.rgb)
    return Spoilt(scene=_with(_with(scene, item, first), other, second))


def _exchange_colors(scene: Scene, item: SceneObject, rng: np.random.Generator) -> Spoilt | None:
    others = [other for other in scene.objects if other.color is not item.color]
    if not others:
        return None
    other = others[int(rng.integers(len(others)))]
    first = replace(item, color=other.color, rgb=other.rgb)
    second = replace(other, color=item.color, rgb=item.rgb)
    return Spoilt(scene=_with(_with(scene, item, first), other, second))
