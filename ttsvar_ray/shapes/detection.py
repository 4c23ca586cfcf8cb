"""Finds the objects of an image of the built-in world: segmentation, components, template fit.

No learning is involved. The background is the median of the border, an object is a connected region that
differs from it, its colour the nearest palette entry on its core, its shape the best of rendered templates.
Every step works on soft coverage, so that the mild blur of a neural decoder costs little.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ttsvar_ray.shapes.world import COLORS, PALETTE, SHAPES, Color, Shape, signed_distance
from ttsvar_ray.types import Float32Array, UInt8Array

BoolArray = npt.NDArray[np.bool_]

CONTRAST = 50.0
"""Least RGB distance to the background of an object's pixel."""
MIN_AREA = 0.008
"""Regions smaller than this share of the image are specks (the smallest object covers 0.04)."""
MIN_FIT: dict[Shape, float] = {
    Shape.CIRCLE: 0.80,
    Shape.RING: 0.64,
    Shape.CROSS: 0.66,
    Shape.BAR: 0.68,
    Shape.MOON: 0.66,
}
"""Least soft intersection over union with the best template. Blobs fit a circle best, so it asks for most;
thin shapes lose most to blur, so they ask for least."""
GOOD_FIT = 0.80
"""A region that fits worse than this is checked for being several objects run together."""
MAX_COLOR_DISTANCE = 90.0
"""An object farther than this from every palette colour (RGB distance) has no colour name."""

_GRID = 24
_HALF_SPAN = 1.35
_FULL_TURN = 2 * np.pi
_ANGLES: dict[Shape, npt.NDArray[np.float64]] = {
    Shape.CIRCLE: np.zeros(1),
    Shape.RING: np.zeros(1),
    Shape.CROSS: np.linspace(0, _FULL_TURN / 4, 12, endpoint=False),
    Shape.BAR: np.linspace(0, _FULL_TURN / 2, 24, endpoint=False),
    Shape.MOON: np.linspace(0, _FULL_TURN, 36, endpoint=False),
}
"""Distinct rotations of each shape: an object may be turned any way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundObject:
    """One object seen in an image.

    Attributes:
        shape: best template, or None when none fits.
        color: nearest palette colour, or None when all are far.
        fit: soft intersection over union with that template, 0..1.
        box: (x1, y1, x2, y2) in pixels, upper ends exclusive.
        area: covered pixels.
    """

    shape: Shape | None
    color: Color | None
    fit: float
    box: tuple[int, int, int, int]
    area: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Canvas:
    """An image seen from its background.

    Attributes:
        background: float32 [3], the median of the border.
        offset: float32 [height, width, 3], pixel minus background.
        distance: float32 [height, width], length of the offset.
    """

    background: Float32Array
    offset: Float32Array
    distance: Float32Array

    @property
    def min_area(self) -> float:
        """Least area of a region that is no speck, in pixels."""
        return MIN_AREA * self.distance.size


def find_objects(image: UInt8Array) -> tuple[FoundObject, ...]:
    """Return the objects of an image, best fit first.

    Args:
        image: uint8 [height, width, 3], sides of 32 pixels or more.

    Raises:
        ValueError: another dtype or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 32:
        raise ValueError(
            f"image: expected uint8 [height, width, 3] with sides of at least 32, "
            f"got {image.dtype} {list(image.shape)}"
        )
    pixels = image.astype(np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    background = np.median(border, axis=0).astype(np.float32)
    offset = pixels - background
    distance = np.sqrt((offset * offset).sum(axis=2))
    canvas = _Canvas(background=background, offset=offset, distance=distance)
    found: list[FoundObject] = []
    for region in _regions(distance > CONTRAST, canvas.min_area):
        whole = _describe(region, canvas)
        found.extend([whole] if whole.fit >= GOOD_FIT else _separate(region, whole, canvas))
    return tuple(sorted(found, key=lambda item: -item.fit))


def _regions(mask: BoolArray, min_area: float) -> list[BoolArray]:
    """Return the 4-connected regions of a mask that are no specks, as masks of the whole image."""
    labels, count = ndimage.label(mask)
    if not count:
        return []
    areas = np.bincount(labels.ravel())[1:]
    return [labels == label + 1 for label in np.flatnonzero(areas >= min_area)]


def _separate(region: BoolArray, whole: FoundObject, canvas: _Canvas) -> list[FoundObject]:
    """Return a badly fitting region as it is, or as the parts that explain it better.

    Tried are the regions that remain at higher contrasts (objects joined by blur) and the regions of one
    palette colour (objects of different colours that touch). Parts are taken when their mean fit, weighted
    by area, is clearly above that of the whole.
    """
    distance, min_area = canvas.distance, canvas.min_area
    peak = float(np.quantile(distance[region], 0.9))
    candidates: list[list[BoolArray]] = [
        _regions(region & (distance > level * peak), min_area) for level in (0.5, 0.65)
    ]
    nearest = _nearest_color(canvas.offset[region] + canvas.background)
    painted = np.full(region.shape, -1)
    painted[region] = nearest
    solid = region & (distance > 0.5 * peak)
    candidates.append(
        [part for index in np.unique(nearest) for part in _regions(solid & (painted == index), min_area)]
    )
    best, best_fit = [whole], whole.fit + 0.05
    for parts in candidates:
        if not parts:
            continue
        items = [_describe(part, canvas) for part in parts]
        areas = np.array([item.area for item in items])
        fit = float((areas * [item.fit for item in items]).sum() / areas.sum())
        if fit > best_fit:
            best, best_fit = items, fit
    return best


def _describe(region: BoolArray, canvas: _Canvas) -> FoundObject:
    """Return what a region shows."""
    rows, columns = _span(np.any(region, axis=1)), _span(np.any(region, axis=0))
    window = (slice(max(0, rows[0] - 2), rows[1] + 2), slice(max(0, columns[0] - 2), columns[1] + 2))
    mine, near, offset = region[window], canvas.distance[window], canvas.offset[window]
    core = mine & (near >= 0.75 * np.quantile(near[mine], 0.9))
    contrast = np.median(offset[core], axis=0)
    # Coverage is how far a pixel has moved from the background towards the object's own colour; the soft
    # rim outside the contrast threshold belongs to the object too.
    coverage = np.clip(offset @ contrast / float(contrast @ contrast), 0.0, 1.0)
    coverage[~ndimage.binary_dilation(mine)] = 0.0
    shape, fit = _best_template(coverage)
    color = _color_name(canvas.background + contrast)
    return FoundObject(
        shape=shape if fit >= MIN_FIT[shape] else None,
        color=color,
        fit=fit,
        box=(columns[0], rows[0], columns[1], rows[1]),
        area=float(coverage.sum()),
    )


def _span(occupied: BoolArray) -> tuple[int, int]:
    """Return the first and one past the last True."""
    places = np.flatnonzero(occupied)
    return int(places[0]), int(places[-1]) + 1


def _nearest_color(rgb: Float32Array) -> npt.NDArray[np.intp]:
    """Return the palette index of each colour, [num_colors]."""
    palette = np.array([PALETTE[color] for color in COLORS], dtype=np.float32)
    return np.asarray(((rgb[:, None] - palette) ** 2).sum(axis=2).argmin(axis=1))


def _color_name(rgb: Float32Array) -> Color | None:
    """Return the nearest palette colour, None when it is too far to be called that."""
    color = COLORS[int(_nearest_color(rgb[None])[0])]
    if float(np.linalg.norm(rgb - np.array(PALETTE[color]))) > MAX_COLOR_DISTANCE:
        return None
    return color


def _best_template(coverage: Float32Array) -> tuple[Shape, float]:
    """Return the shape that overlaps best after centring and scaling to unit area, and its soft IoU."""
    names, templates = _templates()
    total = float(coverage.sum())
    row_center = float(coverage.sum(axis=1) @ np.arange(coverage.shape[0])) / total
    column_center = float(coverage.sum(axis=0) @ np.arange(coverage.shape[1])) / total
    steps = _grid_steps() * np.sqrt(total)
    seen = _sample(coverage, row_center + steps, column_center + steps).ravel()
    intersection = np.minimum(templates, seen).sum(axis=1)
    fit = intersection / (templates.sum(axis=1) + seen.sum() - intersection)
    best = int(fit.argmax())
    return names[best], float(fit[best])


def _sample(coverage: Float32Array, rows: Iterable[float], columns: Iterable[float]) -> Float32Array:
    """Return bilinear samples of a coverage on a grid of row and column positions; 0 outside."""
    row_weights = _tent_weights(np.asarray(rows), coverage.shape[0])
    column_weights = _tent_weights(np.asarray(columns), coverage.shape[1])
    return np.asarray(row_weights @ coverage @ column_weights.T)


def _tent_weights(positions: npt.NDArray[np.float64], size: int) -> Float32Array:
    """Return bilinear weights [num_positions, size] (a tent of one pixel around each position)."""
    return np.maximum(0.0, 1.0 - np.abs(positions[:, None] - np.arange(size))).astype(np.float32)


def _grid_steps() -> npt.NDArray[np.float64]:
    """Return the sample offsets along one axis, in square roots of the object's area."""
    return ((np.arange(_GRID) + 0.5) / _GRID * 2 - 1) * _HALF_SPAN


@lru_cache(maxsize=1)
def _templates() -> tuple[tuple[Shape, ...], Float32Array]:
    """Return the shape of each template and the templates, float32 [num_templates, grid * grid].

    Each is drawn finely with the edge softness of a small object, then passed through the same centring
    and scaling as an object that is seen.
    """
    side, radius = 96, 30.0
    axis = (np.arange(side) + 0.5 - side / 2) / radius
    x, y = np.meshgrid(axis, axis)
    names: list[Shape] = []
    templates: list[Float32Array] = []
    for shape in SHAPES:
        for angle in _ANGLES[shape]:
            turned_x, turned_y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            # A pixel of a 48-pixel image is about an eighth of a radius wide.
            coverage = np.clip(0.5 - signed_distance(shape, turned_x, turned_y) * 8, 0, 1)
            total = float(coverage.sum())
            row_center = float(coverage.sum(axis=1) @ np.arange(side)) / total
            column_center = float(coverage.sum(axis=0) @ np.arange(side)) / total
            steps = _grid_steps() * np.sqrt(total)
            names.append(shape)
            templates.append(_sample(coverage.astype(np.float32), row_center + steps, column_center + steps))
    return tuple(names), np.stack([template.ravel() for template in templates])
