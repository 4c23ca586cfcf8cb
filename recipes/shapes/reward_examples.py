"""Training examples of the shapes reward: an image, a true caption, several false ones, and what is where."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recipes.shapes.captions import Mix, sample_caption, sample_kind, write_caption
from recipes.shapes.render import render_batch
from recipes.shapes.scenes import CROWD, Scene, clear_relation, sample_scene
from recipes.shapes.variants import hard_negatives, true_captions
from ttsvar_ray.shapes.world import (
    COLORS,
    COUNT_WORDS,
    HARD_KINDS,
    PLURALS,
    SHAPES,
    Caption,
    Claim,
    Kind,
    Relation,
    Shape,
)
from ttsvar_ray.types import Float32Array, Int64Array, UInt8Array

NOUNS_PER_CAPTION = 3
CAPTIONS_PER_IMAGE = 4
"""The first one is true, the others are false."""

USUAL = Mix(
    weights={
        Kind.SINGLE_OBJECT: 0.07,
        Kind.TWO_OBJECT: 0.13,
        Kind.COUNTING: 0.16,
        Kind.COLORS: 0.08,
        Kind.POSITION: 0.30,
        Kind.COLOR_ATTR: 0.26,
    }
)
"""How often each kind is the true caption: relations and attributions are what a reward finds hardest."""

CROWDED_SHARE = 0.3
"""Scenes that show more than their caption says; of the harder kinds there are none."""
FULL_STOP_SHARE = 0.1
_SHAPE_WORDS: dict[str, Shape] = {shape.value: shape for shape in SHAPES} | {
    plural: shape for shape, plural in PLURALS.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardBatch:
    """B images with C captions each (row b * C is the true caption of image b).

    Attributes:
        images: uint8 [B, side, side, 3].
        texts: B * C captions.
        kinds: B kinds of the true captions.
        centers, radii: float32 [B, 6, 2] and [B, 6], fractions of the side; 0 where there is no object.
        shape_index, color_index: int64 [B, 6]; -1 where there is no object.
        noun_token: int64 [B * C, 3], place of each shape word among the tokens ([CLS] is 0); 0 where none.
        noun_count: int64 [B * C, 3], how many objects of that shape the image shows; -1 where no noun.
        noun_object: int64 [B * C, 3], the row in `centers` of the only such object; -1 where not exactly one.
    """

    images: UInt8Array
    texts: tuple[str, ...]
    kinds: tuple[Kind, ...]
    centers: Float32Array
    radii: Float32Array
    shape_index: Int64Array
    color_index: Int64Array
    noun_token: Int64Array
    noun_count: Int64Array
    noun_object: Int64Array


def sample_batch(rng: np.random.Generator, size: int, image_size: int, mix: Mix = USUAL) -> RewardBatch:
    """Draw `size` fresh examples, rendered at `image_size` pixels."""
    scenes, kinds, texts = [], [], []
    for _ in range(size):
        kind = sample_kind(rng, mix.weights)
        crowded = kind not in HARD_KINDS and rng.random() < CROWDED_SHARE
        scene, caption = _crowded(rng, kind) if crowded else mix.example(rng, kind)
        scenes.append(scene)
        kinds.append(kind)
        captions = [caption, *draw_negatives(scene, caption, rng, CAPTIONS_PER_IMAGE - 1, mix)]
        texts += [c.text + " ." if rng.random() < FULL_STOP_SHARE else c.text for c in captions]
    return label(render_batch(scenes, image_size), scenes, kinds, texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuxiliaryLabels:
    """What is where, padded to `CROWD` rows, for auxiliary training losses.

    Attributes:
        count: number of real rows.
        centers: float32 [6, 2], (x, y) as fractions of the side; 0 where padded.
        radii: float32 [6], fractions of the side; 0 where padded.
        shape_index: int64 [6], index into `SHAPES`; -1 where padded.
        color_index: int64 [6], index into `COLORS`; -1 where padded.
    """

    count: int
    centers: Float32Array
    radii: Float32Array
    shape_index: Int64Array
    color_index: Int64Array


def auxiliary_labels(scene: Scene) -> AuxiliaryLabels:
    """Return positions, sizes and classes of a scene's objects as padded arrays."""
    centers = np.zeros((CROWD, 2), dtype=np.float32)
    radii = np.zeros(CROWD, dtype=np.float32)
    shape_index = np.full(CROWD, -1, dtype=np.int64)
    color_index = np.full(CROWD, -1, dtype=np.int64)
    for row, item in enumerate(scene.objects):
        centers[row] = item.x, item.y
        radii[row] = item.radius
        shape_index[row] = SHAPES.index(item.shape)
        color_index[row] = COLORS.index(item.color)
    return AuxiliaryLabels(
        count=len(scene.objects),
        centers=centers,
        radii=radii,
        shape_index=shape_index,
        color_index=color_index,
    )


def label(images: UInt8Array, scenes: list[Scene], kinds: list[Kind], texts: list[str]) -> RewardBatch:
    """Attach what is where, and where each shape word of a caption points, to images and captions."""
    objects = [auxiliary_labels(scene) for scene in scenes]
    per_image = len(texts) // len(scenes)
    nouns = np.stack([_nouns(text, scenes[row // per_image]) for row, text in enumerate(texts)])
    return RewardBatch(
        images=images,
        texts=tuple(texts),
        kinds=tuple(kinds),
        centers=np.stack([item.centers for item in objects]),
        radii=np.stack([item.radii for item in objects]),
        shape_index=np.stack([item.shape_index for item in objects]),
        color_index=np.stack([item.color_index for item in objects]),
        noun_token=nouns[:, 0],
        noun_count=nouns[:, 1],
        noun_object=nouns[:, 2],
    )


def draw_negatives(
    scene: Scene, caption: Caption, rng: np.random.Generator, count: int, mix: Mix = USUAL
) -> list[Caption]:
    """Return `count` captions that are false of the scene, most of them one attribute away from the true one.

    Exchanged relations and exchanged colours come first, as they are the hardest; captions about an
    object that is not there, a wrong number and unrelated captions fill up.
    """
    close = [one for one in hard_negatives(caption, rng) if mix.allows(one) and is_false(scene, one)]
    same_words = [negative for negative in close if _is_exchange(caption, negative)]
    others = [negative for negative in close if not _is_exchange(caption, negative)]
    chosen = same_words[:2] + others
    # One place in five goes to another kind of mistake even where the hard ones would fill all.
    kept = chosen[: count - 1] if rng.random() < 0.6 else chosen[:count]
    while len(kept) < count:
        kept.append(_lure(scene, rng, mix))
    return kept


def is_false(scene: Scene, caption: Caption) -> bool:
    """Whether a caption is surely false of a scene; False also where GenEval's rules leave room for doubt."""
    shapes = Counter(item.shape for item in scene.objects)
    is_exact = caption.kind in HARD_KINDS
    for claim in caption.claims:
        number = shapes[claim.shape]
        if number != claim.count and (is_exact or caption.kind is Kind.COUNTING or not number):
            return True
        colors = {item.color for item in scene.objects if item.shape is claim.shape}
        if claim.color and (claim.color not in colors or (is_exact and len(colors) > 1)):
            return True
    for (first, second), relation in zip(
        itertools.pairwise(caption.claims), caption.relations, strict=bool(caption.relations)
    ):
        if shapes[first.shape] == shapes[second.shape] == 1:
            a, b = (
                next(item for item in scene.objects if item.shape is claim.shape) for claim in (first, second)
            )
            shown = clear_relation(a, b)
            if shown is not None and shown is not relation:
                return True
    return False


def _crowded(rng: np.random.Generator, kind: Kind) -> tuple[Scene, Caption]:
    """Draw a scene of two to four objects and a caption of this kind that is true of it, among others."""
    while True:
        scene = sample_scene(rng)
        true = [caption for caption in true_captions(scene) if caption.kind is kind]
        if true and len(scene.objects) > 1:
            caption = true[int(rng.integers(len(true)))]
            wording = rng.random(2)
            return scene, write_caption(
                caption.kind,
                caption.claims,
                caption.relations,
                long_relation=bool(wording[0] < 0.3),
                prefix=bool(wording[1] < 0.15),
            )


def _is_exchange(caption: Caption, negative: Caption) -> bool:
    """Whether a negative names the same objects and only relates or colours them differently."""
    said = [
        (Counter(c.shape for c in one.claims), Counter((c.count, c.color) for c in one.claims))
        for one in (caption, negative)
    ]
    return said[0] == said[1]


def _lure(scene: Scene, rng: np.random.Generator, mix: Mix) -> Caption:
    """Draw a false caption of another make: an object that is missing, a wrong number, or anything."""
    while True:
        if not mix.weights.keys().isdisjoint(HARD_KINDS) and rng.random() < 0.5:
            caption = _one_of_each(scene, rng)
            if len(caption.claims) > 1 and mix.allows(caption) and is_false(scene, caption):
                return caption
        caption = _missing_object(scene, rng) if rng.random() < 0.5 else sample_caption(rng)
        if rng.random() < 0.25:
            shape = scene.objects[int(rng.integers(len(scene.objects)))].shape
            number = int(rng.integers(min(COUNT_WORDS), max(COUNT_WORDS) + 1))
            caption = write_caption(Kind.COUNTING, (Claim(count=number, shape=shape),))
        if is_false(scene, caption):
            return caption


def _one_of_each(scene: Scene, rng: np.random.Generator) -> Caption:
    """Name each shape of a scene once, in a harder caption: false where there are several of one.

    Of one shape alone no such caption can be made: it comes back as a plain one.
    """
    shuffled = (scene.objects[int(i)] for i in rng.permutation(len(scene.objects)))
    items = {item.shape: item for item in shuffled}
    colored = rng.random(3) < 0.6
    claims = tuple(
        Claim(count=1, shape=item.shape, color=item.color if named or not at else None)
        for at, (item, named) in enumerate(zip(list(items.values())[:3], colored, strict=False))
    )
    relations = tuple(tuple(Relation)[int(i)] for i in rng.integers(len(Relation), size=len(claims) - 1))
    if len(claims) == 3:
        placed = rng.random() < 0.5
        kind = Kind.TWO_RELATIONS if placed else Kind.THREE_OBJECT
        return write_caption(kind, claims, relations if placed else ())
    return write_caption(Kind.COLOR_POSITION if len(claims) == 2 else Kind.COLORS, claims, relations)


def _missing_object(scene: Scene, rng: np.random.Generator) -> Caption:
    """Name an object that is there beside one that is not."""
    there = scene.objects[int(rng.integers(len(scene.objects)))]
    absent = [shape for shape in SHAPES if all(item.shape is not shape for item in scene.objects)]
    other = absent[int(rng.integers(len(absent)))]
    kind = (Kind.TWO_OBJECT, Kind.POSITION, Kind.COLOR_ATTR)[int(rng.integers(3))]
    relations = (tuple(Relation)[int(rng.integers(len(Relation)))],) if kind is Kind.POSITION else ()
    colored = kind is Kind.COLOR_ATTR
    other_colors = [color for color in COLORS if color is not there.color]
    claims = [
        Claim(count=1, shape=there.shape, color=there.color if colored else None),
        Claim(
            count=1,
            shape=other,
            color=other_colors[int(rng.integers(len(other_colors)))] if colored else None,
        ),
    ]
    if rng.random() < 0.5:
        claims.reverse()
    return write_caption(kind, tuple(claims), relations, prefix=bool(rng.random() < 0.15))


def _nouns(text: str, scene: Scene) -> npt.NDArray[np.int64]:
    """Return int64 [3, 3]: token place, number of such objects, the only such object, per shape word."""
    rows = np.array([[0], [-1], [-1]], dtype=np.int64).repeat(NOUNS_PER_CAPTION, axis=1)
    shapes = [item.shape for item in scene.objects]
    places = [(place, word) for place, word in enumerate(text.split()) if word in _SHAPE_WORDS]
    for column, (place, word) in enumerate(places[:NOUNS_PER_CAPTION]):
        shape = _SHAPE_WORDS[word]
        number = shapes.count(shape)
        rows[:, column] = place + 1, number, shapes.index(shape) if number == 1 else -1
    assert len(shapes) <= CROWD
    return rows
