"""What holds for any scene and any caption of the built-in world."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.shapes.captions import sample_caption, sample_example, sample_scene_for
from recipes.shapes.render import coverage_mask, render
from recipes.shapes.scenes import CROWD, Scene
from recipes.shapes.variants import hard_negatives, true_captions
from ttsvar_ray.shapes.checker import judge, relative_position
from ttsvar_ray.shapes.detection import FoundObject
from ttsvar_ray.shapes.world import MAX_WORDS, VOCABULARY, Kind, Relation, parse_caption

SEEDS = st.integers(0, 2**32 - 1)
BOXES = st.tuples(*[st.floats(0, 100)] * 2, *[st.floats(1, 60)] * 2).map(
    lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3])
)
OPPOSITES = {
    Relation.LEFT: Relation.RIGHT,
    Relation.RIGHT: Relation.LEFT,
    Relation.ABOVE: Relation.BELOW,
    Relation.BELOW: Relation.ABOVE,
}


def perfect_detections(scene: Scene) -> tuple[FoundObject, ...]:
    """What a perfect detector would report."""
    found = []
    for item in scene.objects:
        rows, columns = np.nonzero(coverage_mask(item, 128) > 0.5)
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        found.append(FoundObject(shape=item.shape, color=item.color, fit=1.0, box=box, area=float(len(rows))))
    return tuple(found)


@given(seed=SEEDS, kind=st.sampled_from(Kind))
def test_any_caption_parses_back(seed: int, kind: Kind) -> None:
    caption = sample_caption(np.random.default_rng(seed), kind)
    assert parse_caption(caption.text) == caption
    words = caption.text.split()
    assert set(words) <= set(VOCABULARY)
    assert len(words) <= MAX_WORDS


@given(seed=SEEDS, kind=st.sampled_from(Kind))
@settings(deadline=None)
def test_a_perfect_detector_confirms_the_caption_and_no_negative(seed: int, kind: Kind) -> None:
    rng = np.random.default_rng(seed)
    scene, caption = sample_example(rng, kind)
    seen = perfect_detections(scene)
    verdict = judge(seen, caption)
    assert verdict.correct, verdict.reason
    for negative in hard_negatives(caption, rng):
        assert not judge(seen, negative).correct, negative.text
        if sum(claim.count for claim in negative.claims) <= CROWD:
            other = perfect_detections(sample_scene_for(rng, negative))
            assert not judge(other, caption).correct, negative.text
    for true in true_captions(scene):
        assert judge(seen, true).correct, true.text


@given(a=BOXES, b=BOXES)
def test_relations_are_mirrored_when_the_boxes_are_exchanged(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float]
) -> None:
    here, there = relative_position(a, b), relative_position(b, a)
    assert {OPPOSITES[relation] for relation in here} == set(there)
    assert len(here) <= 2


@given(seed=SEEDS, size=st.integers(48, 128))
@settings(deadline=None, max_examples=30)
def test_an_image_holds_only_its_colours_and_their_blends(seed: int, size: int) -> None:
    scene, _ = sample_example(np.random.default_rng(seed))
    image = render(scene, size).astype(float)
    corners = np.array([scene.background, *(item.rgb for item in scene.objects)], dtype=float)
    assert (image >= corners.min(axis=(0)) - 0.5).all()
    assert (image <= corners.max(axis=(0)) + 0.5).all()
    assert (image[0, 0] == scene.background).all()
