"""Captions that go with a scene or with a caption: what is also true, and what is wrong in one thing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from recipes.shapes.captions import write_caption
from recipes.shapes.scenes import Scene, clear_relation
from ttsvar_ray.shapes.world import (
    COLORS,
    COUNT_WORDS,
    HARD_KINDS,
    LONG_RELATIONS,
    MAX_WORDS,
    PREFIX,
    SHAPES,
    Caption,
    Claim,
    Kind,
    Relation,
    Shape,
)

_T = TypeVar("_T")

_OPPOSITES: dict[Relation, Relation] = {
    Relation.LEFT: Relation.RIGHT,
    Relation.RIGHT: Relation.LEFT,
    Relation.ABOVE: Relation.BELOW,
    Relation.BELOW: Relation.ABOVE,
}


def hard_negatives(caption: Caption, rng: np.random.Generator) -> list[Caption]:
    """Return captions of the same kind and wording with one thing wrong, in random order.

    One for each way of going wrong that the kind allows: a shape replaced (one negative per claim), a colour
    replaced (one per named colour), another count, the opposite relation and another one, the objects of a
    relation exchanged, the colours or the counts of two neighbouring claims exchanged. No negative is true of
    a scene that shows exactly what the caption claims, nor the caption of a scene that shows a negative.
    """
    negatives: list[tuple[tuple[Claim, ...], tuple[Relation, ...]]] = []
    claims, relations = caption.claims, caption.relations
    used_shapes = {claim.shape for claim in claims}
    used_colors = {claim.color for claim in claims}
    for place, claim in enumerate(claims):
        shape = _other(rng, [s for s in SHAPES if s not in used_shapes])
        negatives.append((_replaced(claims, place, shape=shape), relations))
        if claim.color is not None:
            color = _other(rng, [c for c in COLORS if c not in used_colors])
            negatives.append((_replaced(claims, place, color=color), relations))
        if claim.count > 1 or caption.kind is Kind.TWO_COUNTS:
            count = _other(rng, [n for n in COUNT_WORDS if n != claim.count])
            negatives.append((_replaced(claims, place, count=count), relations))
    for place, relation in enumerate(relations):
        opposite = _OPPOSITES[relation]
        other = _other(rng, [r for r in Relation if r not in (relation, opposite)])
        negatives.extend(
            (claims, (*relations[:place], wrong, *relations[place + 1 :])) for wrong in (opposite, other)
        )
        exchanged = (*claims[:place], claims[place + 1], claims[place], *claims[place + 2 :])
        negatives.append((exchanged, relations))
    if caption.kind is Kind.COLOR_ATTR or caption.kind in HARD_KINDS:
        for place, (first, second) in enumerate(itertools.pairwise(claims)):
            if first.color and second.color and first.color is not second.color:
                exchanged = _replaced(claims, place, color=second.color)
                negatives.append((_replaced(exchanged, place + 1, color=first.color), relations))
            if first.count != second.count:
                exchanged = _replaced(claims, place, count=second.count)
                negatives.append((_replaced(exchanged, place + 1, count=first.count), relations))
    long_relation = any(text in caption.text for text in LONG_RELATIONS.values())
    prefix = caption.text.startswith(PREFIX)
    written = [
        write_caption(caption.kind, *negatives[int(i)], long_relation=long_relation, prefix=prefix)
        for i in rng.permutation(len(negatives))
    ]
    # Another relation may take more words than there is room for; the shortest wording has room.
    return [
        one if len(one.text.split()) <= MAX_WORDS else write_caption(caption.kind, one.claims, one.relations)
        for one in written
    ]


def true_captions(scene: Scene) -> list[Caption]:
    """Return every caption of the shortest wording that a scene of this world makes true, as GenEval judges.

    Useful to re-draw the caption of one scene; unlike `sample_example`, the scene may show more than is said.
    A colour is only claimed where all objects of the shape have it, and a relation only between objects that
    are alone of their shape, for GenEval looks at the most certain object of a class and at no other.
    """
    found: list[Caption] = []
    shapes = [item.shape for item in scene.objects]
    colored: dict[Shape, Claim] = {}
    for shape in dict.fromkeys(shapes):
        found.append(write_caption(Kind.SINGLE_OBJECT, (Claim(count=1, shape=shape),)))
        if shapes.count(shape) in COUNT_WORDS:
            found.append(write_caption(Kind.COUNTING, (Claim(count=shapes.count(shape), shape=shape),)))
        colors = {item.color for item in scene.objects if item.shape is shape}
        if len(colors) == 1:
            colored[shape] = Claim(count=1, shape=shape, color=colors.pop())
            found.append(write_caption(Kind.COLORS, (colored[shape],)))
    for a, b in itertools.permutations(scene.objects, 2):
        if a.shape is b.shape:
            continue
        pair = (Claim(count=1, shape=a.shape), Claim(count=1, shape=b.shape))
        found.append(write_caption(Kind.TWO_OBJECT, pair))
        relation = clear_relation(a, b)
        if relation is not None and shapes.count(a.shape) == shapes.count(b.shape) == 1:
            found.append(write_caption(Kind.POSITION, pair, (relation,)))
        if a.color is not b.color and a.shape in colored and b.shape in colored:
            found.append(write_caption(Kind.COLOR_ATTR, (colored[a.shape], colored[b.shape])))
    return list(dict.fromkeys(found))


def _replaced(claims: tuple[Claim, ...], place: int, **changed: Any) -> tuple[Claim, ...]:
    """Return the claims with attributes of one of them changed."""
    return (*claims[:place], dataclasses.replace(claims[place], **changed), *claims[place + 1 :])


def _other(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    """Draw one of several choices."""
    return choices[int(rng.integers(len(choices)))]
