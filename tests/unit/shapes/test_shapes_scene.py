"""Scenes and their pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from recipes.shapes.render import coverage_mask, render, render_batch
from recipes.shapes.reward_examples import auxiliary_labels
from recipes.shapes.scenes import (
    BACKGROUND_DISTANCE,
    COVER,
    LARGE_RADIUS,
    OUTLINES,
    SMALL_RADIUS,
    Scene,
    SceneObject,
    clear_relation,
    sample_scene,
)
from ttsvar_ray.shapes.world import COLORS, PALETTE, SHAPES, Color, Relation, Shape, signed_distance

AREAS = {
    Shape.CIRCLE: math.pi,
    Shape.RING: math.pi * (1.06**2 - 0.54**2),
    Shape.CROSS: 4 * (2 * 1.15 * 0.30) - 4 * 0.30**2,
    Shape.BAR: 4 * 1.20 * 0.42,
}


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_and_covers_fit_the_signed_distance(shape: Shape) -> None:
    outline = OUTLINES[shape]
    np.testing.assert_allclose(signed_distance(shape, outline[:, 0], outline[:, 1]), 0, atol=1e-9)
    axis = np.linspace(-1.4, 1.4, 141)
    x, y = np.meshgrid(axis, axis)
    inside = signed_distance(shape, x, y) < 0
    discs = COVER[shape]
    covered = (np.hypot(x[..., None] - discs[:, 0], y[..., None] - discs[:, 1]) <= discs[:, 2]).any(axis=-1)
    assert not (inside & ~covered).any()
    # The box of a shape is centred on the origin: positions are judged by boxes.
    middle = (outline.min(axis=0) + outline.max(axis=0)) / 2
    np.testing.assert_allclose(middle, 0, atol=1e-9)


@pytest.mark.parametrize("shape", list(AREAS))
@pytest.mark.parametrize("size", [48, 128])
def test_coverage_sums_to_the_area(shape: Shape, size: int) -> None:
    item = SceneObject(
        shape=shape, color=Color.RED, x=0.51, y=0.47, radius=0.2, angle=0.23, rgb=PALETTE[Color.RED]
    )
    expected = AREAS[shape] * (0.2 * size) ** 2
    assert coverage_mask(item, size).sum() == pytest.approx(expected, rel=0.01)


def test_objects_stay_inside_and_apart() -> None:
    for scene in scenes(300):
        masks = np.stack([coverage_mask(item, 128) > 0.5 for item in scene.objects])
        for mask in masks:
            assert not mask[[0, -1]].any()
            assert not mask[:, [0, -1]].any()
        # The gap is 3/64 of the side, six pixels here: masks grown by two pixels each cannot meet.
        grown = sum(ndimage.binary_dilation(mask, iterations=2).astype(int) for mask in masks)
        assert np.max(grown) <= 1


def test_scenes_vary_and_keep_their_ranges() -> None:
    drawn = scenes(400)
    assert {len(scene.objects) for scene in drawn} == {1, 2, 3, 4}
    items = [item for scene in drawn for item in scene.objects]
    assert {item.shape for item in items} == set(SHAPES)
    assert {item.color for item in items} == set(COLORS)
    palette = np.array(list(PALETTE.values()), dtype=float)
    for scene in drawn:
        low, high = LARGE_RADIUS if len(scene.objects) <= 2 else SMALL_RADIUS
        assert all(low <= item.radius <= high for item in scene.objects)
        distances = np.linalg.norm(palette - np.array(scene.background), axis=1)
        assert distances.min() >= BACKGROUND_DISTANCE
    brightness = np.array([np.mean(scene.background) for scene in drawn])
    assert (brightness < 60).mean() > 0.2
    assert (brightness > 200).mean() > 0.3


def test_equal_seeds_give_equal_scenes() -> None:
    assert scenes(20, seed=5) == scenes(20, seed=5)
    assert scenes(20, seed=5) != scenes(20, seed=6)


@pytest.mark.parametrize("relation", list(Relation))
def test_a_relation_is_placed_clearly(relation: Relation) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        first, second = rng.permutation(len(SHAPES))[:2]
        items = [(SHAPES[first], Color.RED), (SHAPES[second], Color.BLUE)]
        scene = sample_scene(rng, items, [relation])
        assert [(item.shape, item.color) for item in scene.objects] == items
        assert clear_relation(scene.objects[0], scene.objects[1]) is relation


def test_sampling_refuses_what_it_cannot_place() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="1 to 6 objects, got 7"):
        sample_scene(rng, [(Shape.BAR, Color.RED)] * 7)
    with pytest.raises(ValueError, match="2 need one object more, got 2"):
        sample_scene(rng, [(Shape.BAR, Color.RED)] * 2, [Relation.LEFT] * 2)


def test_pixels_are_object_colour_inside_and_background_outside() -> None:
    for scene in scenes(30):
        image = render(scene, 64)
        outside = np.ones((64, 64), dtype=bool)
        for item in scene.objects:
            mask = coverage_mask(item, 64)
            assert (image[mask == 1] == item.rgb).all()
            outside &= mask == 0
        assert (image[outside] == scene.background).all()
        assert image.dtype == np.uint8


def test_a_batch_is_the_single_renders() -> None:
    drawn = scenes(12)
    batch = render_batch(drawn, 48)
    assert batch.shape == (12, 48, 48, 3)
    for image, scene in zip(batch, drawn, strict=True):
        np.testing.assert_array_equal(image, render(scene, 48))


def test_a_large_render_shrinks_to_the_small_one() -> None:
    for scene in scenes(20):
        large = render(scene, 96).astype(float).reshape(48, 2, 48, 2, 3).mean(axis=(1, 3))
        difference = np.abs(large - render(scene, 48))
        assert difference.mean() < 1.0
        assert difference.max() < 64


@pytest.mark.parametrize("size", [47, 129])
def test_sizes_outside_the_range_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="48 to 128"):
        render(scenes(1)[0], size)


def test_auxiliary_labels_name_every_object() -> None:
    for scene in scenes(40):
        labels = auxiliary_labels(scene)
        assert labels.count == len(scene.objects)
        for row, item in enumerate(scene.objects):
            assert SHAPES[labels.shape_index[row]] is item.shape
            assert COLORS[labels.color_index[row]] is item.color
            np.testing.assert_allclose(labels.centers[row], [item.x, item.y], rtol=1e-6)
            assert labels.radii[row] == pytest.approx(item.radius)
        assert (labels.shape_index[labels.count :] == -1).all()
        assert (labels.color_index[labels.count :] == -1).all()
