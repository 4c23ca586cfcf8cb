"""Scenes to pixels, anti-aliased: coverage of a pixel is read off the signed distance at its centre."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recipes.shapes.scenes import REACH, Scene, SceneObject
from ttsvar_ray.shapes.world import signed_distance
from ttsvar_ray.types import Float32Array, UInt8Array

MIN_SIZE, MAX_SIZE = 48, 128


def render(scene: Scene, size: int = 48) -> UInt8Array:
    """Return a scene as uint8 [size, size, 3].

    Args:
        scene: what to paint.
        size: side in pixels, 48 to 128.

    Raises:
        ValueError: a size outside that range.
    """
    return np.asarray(render_batch([scene], size)[0])


def render_batch(scenes: Sequence[Scene], size: int = 48) -> UInt8Array:
    """Return scenes as uint8 [num_scenes, size, size, 3].

    Raises:
        ValueError: a size outside 48 to 128.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size: expected {MIN_SIZE} to {MAX_SIZE} pixels, got {size}")
    backgrounds = np.array([scene.background for scene in scenes], dtype=np.float32)
    images = np.broadcast_to(backgrounds[:, None, None], (len(scenes), size, size, 3)).copy()
    for image, scene in zip(images, scenes, strict=True):
        for item in scene.objects:
            rows, columns, coverage = _coverage_window(item, size)
            window = image[rows, columns]
            window += coverage[:, :, None] * (np.array(item.rgb, dtype=np.float32) - window)
    return np.asarray(np.rint(images), dtype=np.uint8)


def coverage_mask(item: SceneObject, size: int) -> Float32Array:
    """Return how much of each pixel an object covers, float32 [size, size] in 0..1."""
    mask = np.zeros((size, size), dtype=np.float32)
    rows, columns, coverage = _coverage_window(item, size)
    mask[rows, columns] = coverage
    return mask


def _coverage_window(item: SceneObject, size: int) -> tuple[slice, slice, Float32Array]:
    """Return the pixel window around an object and its coverage there."""
    radius = item.radius * size
    reach = REACH[item.shape] * radius + 1.0
    center_x, center_y = item.x * size, item.y * size
    rows = slice(max(0, int(center_y - reach)), min(size, int(center_y + reach) + 1))
    columns = slice(max(0, int(center_x - reach)), min(size, int(center_x + reach) + 1))
    scale = 1 / radius
    dx = ((np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - center_x) * scale)[None, :]
    dy = ((np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5 - center_y) * scale)[:, None]
    cosine, sine = np.float32(np.cos(item.angle)), np.float32(np.sin(item.angle))
    distance = signed_distance(item.shape, dx * cosine + dy * sine, dy * cosine - dx * sine) * radius
    return rows, columns, np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)
