"""Captions and scenes that belong together, drawn at random."""

from __future__ import annotations

import numpy as np

from recipes.shapes.scenes import Scene, sample_scene
from ttsvar_ray.shapes.captions import (
    COUNT_WORDS,
    KINDS,
    LONG_RELATIONS,
    PLURALS,
    PREFIX,
    Caption,
    Claim,
    Kind,
)
from ttsvar_ray.shapes.world import COLORS, SHAPES, Color, Relation, Shape

_PREFIX_SHARE = 0.25
_LONG_RELATION_SHARE = 0.3
KIND_WEIGHTS: dict[Kind, float] = {
    Kind.SINGLE_OBJECT: 0.10,
    Kind.TWO_OBJECT: 0.18,
    Kind.COUNTING: 0.20,
    Kind.COLORS: 0.12,
    Kind.POSITION: 0.20,
    Kind.COLOR_ATTR: 0.20,
}
"""How often each kind is drawn for training: more where there is more to learn."""


def write_caption(
    kind: Kind,
    claims: tuple[Claim, ...],
    relation: Relation | None = None,
    *,
    long_relation: bool = False,
    prefix: bool = False,
) -> Caption:
    """Return the caption that makes these claims.

    Args:
        kind: GenEval's tag.
        claims: what is to be said, in order.
        relation: for positions.
        long_relation: "to the left of" instead of "left of" (no effect above and below).
        prefix: start with "a photo of".
    """
    phrases = [_phrase(claim) for claim in claims]
    link = "and"
    if relation is not None:
        link = LONG_RELATIONS.get(relation, relation.value) if long_relation else relation.value
    text = (PREFIX if prefix else "") + f" {link} ".join(phrases)
    return Caption(text=text, kind=kind, claims=claims, relation=relation)


def sample_caption(rng: np.random.Generator, kind: Kind | None = None, *, paraphrase: bool = True) -> Caption:
    """Draw a caption of a kind (None: drawn by `KIND_WEIGHTS`).

    With `paraphrase` the optional wordings are mixed in; without it every text is the shortest one.
    """
    if kind is None:
        weights = np.array([KIND_WEIGHTS[k] for k in KINDS])
        kind = KINDS[int(rng.choice(len(KINDS), p=weights / weights.sum()))]
    first, second = (SHAPES[int(i)] for i in rng.permutation(len(SHAPES))[:2])
    color, other_color = (COLORS[int(i)] for i in rng.permutation(len(COLORS))[:2])
    relation: Relation | None = None
    if kind is Kind.SINGLE_OBJECT:
        claims: tuple[Claim, ...] = (Claim(count=1, shape=first),)
    elif kind is Kind.COUNTING:
        claims = (Claim(count=int(rng.integers(2, 5)), shape=first),)
    elif kind is Kind.COLORS:
        claims = (Claim(count=1, shape=first, color=color),)
    elif kind is Kind.COLOR_ATTR:
        claims = (
            Claim(count=1, shape=first, color=color),
            Claim(count=1, shape=second, color=other_color),
        )
    else:
        claims = (Claim(count=1, shape=first), Claim(count=1, shape=second))
        if kind is Kind.POSITION:
            relation = tuple(Relation)[int(rng.integers(len(Relation)))]
    wording = rng.random(2)
    return write_caption(
        kind,
        claims,
        relation,
        long_relation=paraphrase and wording[0] < _LONG_RELATION_SHARE,
        prefix=paraphrase and wording[1] < _PREFIX_SHARE,
    )


def sample_scene_for(rng: np.random.Generator, caption: Caption) -> Scene:
    """Draw a scene that shows exactly what the caption claims, and nothing else.

    Unnamed colours are drawn freely; the objects of a counting caption share one colour in 3 scenes of 5.
    """
    items: list[tuple[Shape, Color]] = []
    share = rng.random() < 0.6
    for claim in caption.claims:
        common = COLORS[int(rng.integers(len(COLORS)))]
        for _ in range(claim.count):
            color = common if share else COLORS[int(rng.integers(len(COLORS)))]
            items.append((claim.shape, claim.color or color))
    return sample_scene(rng, items, caption.relation)


def sample_example(rng: np.random.Generator, kind: Kind | None = None) -> tuple[Scene, Caption]:
    """Draw a caption and a scene that matches it."""
    caption = sample_caption(rng, kind)
    return sample_scene_for(rng, caption), caption


def _phrase(claim: Claim) -> str:
    """Return the words of one claim."""
    color = f"{claim.color.value} " if claim.color is not None else ""
    if claim.count == 1:
        return f"a {color}{claim.shape.value}"
    return f"{COUNT_WORDS[claim.count]} {color}{PLURALS[claim.shape]}"
