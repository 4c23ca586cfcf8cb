"""The checker: exact on true renders, strict on swapped captions, GenEval's rules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from recipes.shapes.captions import sample_example
from recipes.shapes.render import render
from recipes.shapes.scenes import Scene, SceneObject, sample_scene
from recipes.shapes.variants import hard_negatives, true_captions
from ttsvar_ray.errors import InputError
from ttsvar_ray.shapes.checker import check, judge, relative_position
from ttsvar_ray.shapes.detection import FoundObject, find_objects
from ttsvar_ray.shapes.world import COLORS, HARD_KINDS, PALETTE, SHAPES, Color, Kind, Shape, parse_caption
from ttsvar_ray.types import UInt8Array

DATA = Path(__file__).parents[2] / "data" / "shapes"


def blurred(image: UInt8Array, sigma: float, rng: np.random.Generator) -> UInt8Array:
    """What a mediocre decoder does to an image: blur and a little noise."""
    soft = gaussian_filter(image.astype(float), (sigma, sigma, 0)) + rng.normal(0, 4, image.shape)
    return np.asarray(np.rint(np.clip(soft, 0, 255)), dtype=np.uint8)


def found(
    shape: Shape | None,
    color: Color | None = Color.RED,
    fit: float = 0.9,
    box: tuple[int, int, int, int] = (10, 10, 20, 20),
) -> FoundObject:
    return FoundObject(shape=shape, color=color, fit=fit, box=box, area=80.0)


def chain(*corners: tuple[int, int]) -> list[FoundObject]:
    """A ring, a bar and a moon at these upper left corners."""
    shapes = (Shape.RING, Shape.BAR, Shape.MOON)
    return [found(shape, box=(x, y, x + 10, y + 10)) for shape, (x, y) in zip(shapes, corners, strict=True)]


@pytest.mark.parametrize("kinds", [(None,), HARD_KINDS])
@pytest.mark.parametrize(("size", "sigma"), [(48, 0.0), (48, 0.7), (96, 0.0), (96, 1.4)])
def test_right_on_renders_and_strict_on_swapped_captions(
    size: int, sigma: float, kinds: tuple[Kind | None, ...]
) -> None:
    rng = np.random.default_rng(2024)
    accepted = rejected = swapped = 0
    for row in range(300):
        scene, caption = sample_example(rng, kinds[row % len(kinds)])
        image = render(scene, size)
        if sigma:
            image = blurred(image, sigma, rng)
        seen = find_objects(image)
        accepted += judge(seen, parse_caption(caption.text)).correct
        for negative in hard_negatives(caption, rng):
            swapped += 1
            rejected += not judge(seen, negative).correct
    assert swapped > 800
    assert accepted >= 0.97 * 300
    assert rejected >= 0.99 * swapped


def test_every_object_of_a_crowded_scene_is_named() -> None:
    rng = np.random.default_rng(8)
    for _ in range(150):
        scene = sample_scene(rng)
        seen = find_objects(render(scene, 48))
        assert sorted((o.shape.value, o.color.value) for o in seen if o.shape and o.color) == sorted(
            (o.shape.value, o.color.value) for o in scene.objects
        )
        for caption in true_captions(scene):
            assert judge(seen, caption).correct, (caption.text, seen)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_known_at_any_angle_and_in_any_colour(shape: Shape) -> None:
    rng = np.random.default_rng(1)
    for color in COLORS:
        angle = float(rng.uniform(0, 2 * np.pi))
        item = SceneObject(
            shape=shape, color=color, x=0.5, y=0.5, radius=0.17, angle=angle, rgb=PALETTE[color]
        )
        seen = find_objects(render(Scene(background=(240, 240, 240), objects=(item,))))
        assert [(o.shape, o.color) for o in seen] == [(shape, color)]


def test_objects_of_different_colours_that_touch_are_taken_apart() -> None:
    left = SceneObject(
        shape=Shape.CIRCLE, color=Color.RED, x=0.3, y=0.5, radius=0.19, angle=0, rgb=PALETTE[Color.RED]
    )
    right = SceneObject(
        shape=Shape.CIRCLE, color=Color.BLUE, x=0.68, y=0.5, radius=0.19, angle=0, rgb=PALETTE[Color.BLUE]
    )
    image = render(Scene(background=(20, 20, 20), objects=(left, right)))
    assert {(o.shape, o.color) for o in find_objects(image)} == {
        (Shape.CIRCLE, Color.RED),
        (Shape.CIRCLE, Color.BLUE),
    }
    assert check(image, "two circles").correct


def test_nothing_is_seen_where_nothing_is() -> None:
    noise = np.random.default_rng(0).integers(110, 130, (48, 48, 3)).astype(np.uint8)
    assert find_objects(noise) == ()
    verdict = check(noise, "a ring")
    assert not verdict.correct
    assert verdict.reason == "ring: expected 1, found 0"


def test_specks_are_no_objects_and_a_triangle_is_no_shape() -> None:
    image = np.full((48, 48, 3), 240, dtype=np.uint8)
    image[5:8, 5:8] = PALETTE[Color.RED]
    assert find_objects(image) == ()
    rows, columns = np.mgrid[:48, :48]
    image[(rows > 12) & (rows < 36) & (abs(columns - 24) < (rows - 12) * 0.55)] = PALETTE[Color.GREEN]
    (triangle,) = find_objects(image)
    assert triangle.shape is None
    assert triangle.color is Color.GREEN


def test_a_grey_object_has_no_colour_name() -> None:
    image = np.full((48, 48, 3), 240, dtype=np.uint8)
    image[20:27, 12:32] = 128
    (bar,) = find_objects(image)
    assert (bar.shape, bar.color) == (Shape.BAR, None)
    assert check(image, "a bar").correct
    assert "no named colour" in check(image, "a red bar").reason


@pytest.mark.parametrize(
    ("text", "objects", "correct", "reason"),
    [
        ("a ring", [found(Shape.RING), found(Shape.RING)], True, ""),
        ("a ring", [found(Shape.BAR)], False, "ring: expected 1, found 0"),
        ("a ring and a bar", [found(Shape.RING), found(Shape.BAR), found(Shape.MOON)], True, ""),
        ("a ring and a bar", [found(Shape.RING)], False, "bar: expected 1, found 0"),
        ("two rings", [found(Shape.RING)] * 2 + [found(None)], True, ""),
        ("two rings", [found(Shape.RING)] * 3, False, "ring: expected exactly 2, found 3"),
        ("three rings", [found(Shape.RING)] * 2, False, "ring: expected 3, found 2"),
        ("a red ring", [found(Shape.RING), found(Shape.RING, Color.BLUE)], True, ""),
        # Only the best object of the class is asked for its colour.
        (
            "a red ring",
            [found(Shape.RING, Color.BLUE), found(Shape.RING)],
            False,
            "ring: expected 1 red, found blue",
        ),
        ("a red ring and a blue bar", [found(Shape.RING), found(Shape.BAR, Color.BLUE)], True, ""),
        (
            "a red ring and a blue bar",
            [found(Shape.RING, Color.BLUE), found(Shape.BAR)],
            False,
            "ring: expected 1 red, found blue; bar: expected 1 blue, found red",
        ),
        ("a ring left of a bar", [found(Shape.RING), found(Shape.BAR, box=(30, 10, 40, 20))], True, ""),
        (
            "a ring right of a bar",
            [found(Shape.RING), found(Shape.BAR, box=(30, 10, 40, 20))],
            False,
            "expected ring right of bar, found left of",
        ),
        (
            "a ring left of a bar",
            [found(Shape.RING), found(Shape.BAR, box=(11, 11, 21, 21))],
            False,
            "expected ring left of bar, found nowhere in particular of",
        ),
        # The harder kinds count exactly, and each relation binds the two phrases beside it.
        ("two rings and a bar", [found(Shape.RING)] * 2 + [found(Shape.BAR), found(Shape.MOON)], True, ""),
        (
            "two rings and a bar",
            [found(Shape.RING)] * 2 + [found(Shape.BAR)] * 2,
            False,
            "bar: expected exactly 1, found 2",
        ),
        (
            "two red rings and a bar",
            [found(Shape.RING), found(Shape.RING, Color.BLUE), found(Shape.BAR)],
            False,
            "ring: expected 2 red, found red, blue",
        ),
        (
            "a ring and a bar and a moon",
            [found(Shape.RING), found(Shape.BAR)],
            False,
            "moon: expected 1, found 0",
        ),
        ("a ring left of a bar above a moon", chain((10, 10), (30, 10), (30, 30)), True, ""),
        (
            "a ring left of a bar above a moon",
            chain((10, 30), (30, 30), (10, 10)),
            False,
            "expected bar above moon, found right of and below",
        ),
    ],
)
def test_genevals_rules(text: str, objects: list[FoundObject], correct: bool, reason: str) -> None:
    verdict = judge(tuple(objects), parse_caption(text))
    assert (verdict.correct, verdict.reason) == (correct, reason)


def test_relative_position_agrees_with_geneval() -> None:
    cases = json.loads((DATA / "relative_position.json").read_text(encoding="utf-8"))
    assert len(cases) == 120
    for case in cases:
        held = relative_position(tuple(case["a"]), tuple(case["b"]))
        assert sorted(relation.value for relation in held) == sorted(case["relations"]), case


def test_what_cannot_be_judged_is_refused() -> None:
    image = np.zeros((48, 48, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="found 'dog'"):
        check(image, "a dog")
    with pytest.raises(ValueError, match="expected uint8"):
        check(image.astype(np.float32), "a ring")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 32"):
        find_objects(image[:16])
