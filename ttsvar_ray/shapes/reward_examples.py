"""Training examples of the shapes reward: an image, a true caption, several false ones, and what is where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttsvar_ray.shapes.captions import (
    COUNT_WORDS,
    KINDS,
    PLURALS,
    Caption,
    Claim,
    Kind,
    hard_negatives,
    sample_caption,
    sample_scene_for,
    true_captions,
    write_caption,
)
from ttsvar_ray.shapes.geometry import SHAPES, Shape
from ttsvar_ray.shapes.render import render_batch
from ttsvar_ray.shapes.reward_spoil import MAX_SHOWN, Flaw, paint_flaw, spoil
from ttsvar_ray.shapes.reward_truth import is_false
from ttsvar_ray.shapes.scene import (
    COLORS,
    Relation,
    Scene,
    sample_scene,
)
from ttsvar_ray.types import Float32Array, Int64Array, UInt8Array

NOUNS_PER_CAPTION = 2
CAPTIONS_PER_IMAGE = 4
"""The first one is true, the others are false (but see `RewardBatch`)."""

KIND_SHARES: dict[Kind, float] = {
    Kind.SINGLE_OBJECT: 0.07,
    Kind.TWO_OBJECT: 0.13,
    Kind.COUNTING: 0.16,
    Kind.COLORS: 0.08,
    Kind.POSITION: 0.30,
    Kind.COLOR_ATTR: 0.26,
}
"""How often each kind is the true caption: relations and attributions are what a reward finds hardest."""

TWIN_SHARE = 0.25
"""Images that are spoilt versions of others."""
CROWDED_SHARE = 0.3
"""Scenes that show more than their caption says."""
FULL_STOP_SHARE = 0.1
_SHAPE_WORDS: dict[str, Shape] = {shape.value: shape for shape in SHAPES} | {
    plural: shape for shape, plural in PLURALS.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardBatch:
    """B images with C captions each; the last T of them are spoilt twins of the first T.

    Attributes:
        images: uint8 [B, side, side, 3].
        texts: B * C captions, those of image b from b * C on. The first caption of an image that is no twin
            is true, its others are false. A twin has its original's captions; the first is false of it.
        truth: int64 [B, C]: 1 true, 0 false, -1 not known.
        num_twins: T.
        kinds: B kinds of the first captions.
        centers, radii: float32 [B, 6, 2] and [B, 6], fractions of the side; 0 where there is no object.
        shape_index, color_index: int64 [B, 6]; -1 where there is no object.
        noun_token: int64 [B * C, 2], place of each shape word among the tokens ([CLS] is 0); 0 where none.
        noun_count: int64 [B * C, 2], how many objects of that shape the image shows; -1 where no noun.
        noun_object: int64 [B * C, 2], the row in `centers` of the only such object; -1 where not exactly one.
    """

    images: UInt8Array
    texts: tuple[str, ...]
    truth: Int64Array
    num_twins: int
    kinds: tuple[Kind, ...]
    centers: Float32Array
    radii: Float32Array
    shape_index: Int64Array
    color_index: Int64Array
    noun_token: Int64Array
    noun_count: Int64Array
    noun_object: Int64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One image to be: what it shows, what is said of it, which of that is true (1, 0, or -1: not known)."""

    scene: Scene
    captions: tuple[Caption, ...]
    truth: tuple[int, ...]
    flaw: Flaw | None = None


def sample_batch(rng: np.random.Generator, size: int, image_size: int) -> RewardBatch:
    """Draw fresh examples, rendered at `image_size` pixels; `size` of them, a quarter being spoilt twins."""
    num_twins = int(size * TWIN_SHARE)
    shares = np.array([KIND_SHARES[kind] for kind in KINDS])
    examples: list[Example] = []
    twins: list[Example] = []
    for kind_index in rng.choice(len(KINDS), size=size - num_twins, p=shares / shares.sum()):
        twin = None
        while twin is None:
            example = _draw_example(KINDS[int(kind_index)], rng)
            if len(twins) == num_twins:
                break
            twin = _spoilt_twin(example, rng)
        examples.append(example)
        twins += [twin] if twin is not None else []
    return label([*examples, *twins], num_twins, rng, image_size)


def label(examples: list[Example], num_twins: int, rng: np.random.Generator, image_size: int) -> RewardBatch:
    """Render examples and attach what is where, and where each shape word of a caption points."""
    images = render_batch([example.scene for example in examples], image_size)
    for row, example in enumerate(examples):
        if example.flaw is not None:
            images[row] = paint_flaw(images[row], example.flaw)
    texts = [
        caption.text + " ." if rng.random() < FULL_STOP_SHARE else caption.text
        for example in examples
        for caption in example.captions
    ]
    per_image = len(texts) // len(examples)
    # What a half-painted object counts as is nobody's guess: its words point nowhere.
    nouns = np.stack(
        [
            _nouns(text, examples[row // per_image].scene) * (examples[row // per_image].flaw is None)
            for row, text in enumerate(texts)
        ]
    )
    shape = (len(examples), MAX_SHOWN)
    centers, radii = np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)
    shape_index, color_index = np.full(shape, -1), np.full(shape, -1)
    for row, example in enumerate(examples):
        for column, item in enumerate(example.scene.objects):
            centers[row, column], radii[row, column] = (item.x, item.y), item.radius
            shape_index[row, column] = SHAPES.index(item.shape)
            color_index[row, column] = COLORS.index(item.color)
    return RewardBatch(
        images=images,
        texts=tuple(texts),
        truth=np.array([example.truth for example in examples], np.int64),
        num_twins=num_twins,
        kinds=tuple(example.captions[0].kind for example in examples),
        centers=centers,
        radii=radii,
        shape_index=shape_index,
        color_index=color_index,
        noun_token=nouns[:, 0],
        noun_count=nouns[:, 1],
        noun_object=nouns[:, 2],
    )


def _draw_example(kind: Kind, rng: np.random.Generator) -> Example:
    """Draw a scene with a true caption of a kind and false ones."""
    scene, caption = _crowded(rng, kind) if rng.random() < CROWDED_SHARE else _exact(rng, kind)
    negatives = draw_negatives(scene, caption, rng, CAPTIONS_PER_IMAGE - 1)
    return Example(scene=scene, captions=(caption, *negatives), truth=(1,) + (0,) * len(negatives))


def _spoilt_twin(example: Example, rng: np.random.Generator) -> Example | None:
    """Return an example whose first caption has become false, or None where none was found."""
    spoilt = spoil(example.scene, example.captions[0], rng)
    if spoilt is None:
        return None
    # A scene that was changed may have come to show one of the other captions.
    others = tuple(0 if is_false(spoilt.scene, caption) else -1 for caption in example.captions[1:])
    return Example(scene=spoilt.scene, captions=example.captions, truth=(0, *others), flaw=spoilt.flaw)


def draw_negatives(scene: Scene, caption: Caption, rng: np.random.Generator, count: int) -> list[Caption]:
    """Return `count` captions that are false of the scene, most of them one attribute away from the true one.

    Exchanged relations and exchanged colours come first, as they are the hardest; captions about an
    object that is not there, a wrong number and unrelated captions fill up.
    """
    close = [negative for negative in hard_negatives(caption, rng) if is_false(scene, negative)]
    same_words = [negative for negative in close if _is_exchange(caption, negative)]
    others = [negative for negative in close if not _is_exchange(caption, negative)]
    chosen = same_words[:2] + others
    # One place in five goes to another kind of mistake even where the hard ones would fill all.
    kept = chosen[: count - 1] if rng.random() < 0.6 else chosen[:count]
    while len(kept) < count:
        kept.append(_lure(scene, rng))
    return kept


def _exact(rng: np.random.Generator, kind: Kind) -> tuple[Scene, Caption]:
    """Draw a caption and a scene that shows just that."""
    caption = sample_caption(rng, kind)
    return sample_scene_for(rng, caption), caption


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
                caption.relation,
                long_relation=bool(wording[0] < 0.3),
                prefix=bool(wording[1] < 0.15),
            )


def _is_exchange(caption: Caption, negative: Caption) -> bool:
    """Whether a negative names the same objects and only relates or colours them differently."""
    if caption.kind is Kind.POSITION:
        return {claim.shape for claim in caption.claims} == {claim.shape for claim in negative.claims}
    if caption.kind is Kind.COLOR_ATTR:
        return [claim.color for claim in caption.claims] == [claim.color for claim in negative.claims[::-1]]
    return False


def _lure(scene: Scene, rng: np.random.Generator) -> Caption:
    """Draw a false caption of another make: an object that is missing, a wrong number, or anything."""
    while True:
        caption = _missing_object(scene, rng) if rng.random() < 0.5 else sample_caption(rng)
        if rng.random() < 0.25:
            shape = scene.objects[int(rng.integers(len(scene.objects)))].shape
            number = int(rng.integers(min(COUNT_WORDS), max(COUNT_WORDS) + 1))
            caption = write_caption(Kind.COUNTING, (Claim(count=number, shape=shape),))
        if is_false(scene, caption):
            return caption


def _missing_object(scene: Scene, rng: np.random.Generator) -> Caption:
    """Name an object that is there beside one that is not."""
    there = scene.objects[int(rng.integers(len(scene.objects)))]
    absent = [shape for shape in SHAPES if all(item.shape is not shape for item in scene.objects)]
    other = absent[int(rng.integers(len(absent)))]
    kind = (Kind.TWO_OBJECT, Kind.POSITION, Kind.COLOR_ATTR)[int(rng.integers(3))]
    relation = tuple(Relation)[int(rng.integers(len(Relation)))] if kind is Kind.POSITION else None
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
    return write_caption(kind, tuple(claims), relation, prefix=bool(rng.random() < 0.15))


def _nouns(text: str, scene: Scene) -> npt.NDArray[np.int64]:
    """Return int64 [3, 2]: token place, number of such objects, the only such object, per shape word."""
    rows = np.array([[0, 0], [-1, -1], [-1, -1]], dtype=np.int64)
    shapes = [item.shape for item in scene.objects]
    places = [(place, word) for place, word in enumerate(text.split()) if word in _SHAPE_WORDS]
    for column, (place, word) in enumerate(places[:NOUNS_PER_CAPTION]):
        shape = _SHAPE_WORDS[word]
        number = shapes.count(shape)
        rows[:, column] = place + 1, number, shapes.index(shape) if number == 1 else -1
    return rows
