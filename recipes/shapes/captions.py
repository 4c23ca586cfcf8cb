"""Captions and scenes that belong together, drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from recipes.shapes.scenes import CROWD, Scene, sample_scene
from ttsvar_ray.shapes.world import (
    COLORS,
    COUNT_WORDS,
    HARD_KINDS,
    LONG_RELATIONS,
    MAX_WORDS,
    PLURALS,
    PREFIX,
    SHAPES,
    Caption,
    Claim,
    Color,
    Kind,
    Relation,
    Shape,
)

_PREFIX_SHARE = 0.25
_LONG_RELATION_SHARE = 0.3
_ONE_COLOR_SHARE = 0.6
"""Of `Kind.COLOR_POSITION`: the others name the colours of both objects. Of three objects one, two or three
have their colours named, each as often; of two counts both."""
KIND_WEIGHTS: dict[Kind, float] = {
    Kind.SINGLE_OBJECT: 0.10,
    Kind.TWO_OBJECT: 0.18,
    Kind.COUNTING: 0.20,
    Kind.COLORS: 0.12,
    Kind.POSITION: 0.20,
    Kind.COLOR_ATTR: 0.20,
}
"""How often each kind is drawn for training: more where there is more to learn."""
COUNT_PAIRS: tuple[tuple[int, int], ...] = tuple(
    (a, b) for a in range(1, 5) for b in range(1, 5) if 2 < a + b <= CROWD
)
"""Counts of the two shapes of `Kind.TWO_COUNTS`."""


def write_caption(
    kind: Kind,
    claims: tuple[Claim, ...],
    relations: tuple[Relation, ...] = (),
    *,
    long_relation: bool = False,
    prefix: bool = False,
) -> Caption:
    """Return the caption that makes these claims.

    Args:
        kind: what it is about.
        claims: what is to be said, in order.
        relations: for positions, each between a claim and the next.
        long_relation: "to the left of" instead of "left of" (no effect above and below).
        prefix: start with "a photo of".
    """
    text = (PREFIX if prefix else "") + _phrase(claims[0])
    for place, claim in enumerate(claims[1:]):
        link = "and"
        if relations:
            short = relations[place].value
            link = LONG_RELATIONS.get(relations[place], short) if long_relation else short
        text += f" {link} {_phrase(claim)}"
    return Caption(text=text, kind=kind, claims=claims, relations=relations)


def sample_kind(rng: np.random.Generator, weights: Mapping[Kind, float]) -> Kind:
    """Draw a kind by weights of any sum."""
    shares = np.array(list(weights.values()))
    return tuple(weights)[int(rng.choice(len(shares), p=shares / shares.sum()))]


def sample_caption(rng: np.random.Generator, kind: Kind | None = None, *, paraphrase: bool = True) -> Caption:
    """Draw a caption of a kind (None: drawn by `KIND_WEIGHTS`).

    With `paraphrase` the optional wordings are mixed in; without it every text is the shortest one.
    """
    kind = kind or sample_kind(rng, KIND_WEIGHTS)
    shapes = [SHAPES[int(i)] for i in rng.permutation(len(SHAPES))]
    colors = [COLORS[int(i)] for i in rng.permutation(len(COLORS))]
    claims, relations = _sample_claims(rng, kind, shapes, colors)
    while True:
        wording = rng.random(2)
        caption = write_caption(
            kind,
            claims,
            relations,
            long_relation=paraphrase and bool(wording[0] < _LONG_RELATION_SHARE),
            prefix=paraphrase and bool(wording[1] < _PREFIX_SHARE),
        )
        if len(caption.text.split()) <= MAX_WORDS:
            return caption


def _sample_claims(
    rng: np.random.Generator, kind: Kind, shapes: Sequence[Shape], colors: Sequence[Color]
) -> tuple[tuple[Claim, ...], tuple[Relation, ...]]:
    """Draw what a caption of a kind says, of shapes and colours in random order."""
    counts, colored = [1], kind in (Kind.COLORS, Kind.COLOR_ATTR, *HARD_KINDS)
    if kind is Kind.COUNTING:
        counts = [int(rng.integers(2, 5))]
    elif kind is Kind.TWO_COUNTS:
        counts = list(COUNT_PAIRS[int(rng.integers(len(COUNT_PAIRS)))])
    elif kind in (Kind.TWO_OBJECT, Kind.COLOR_ATTR, Kind.POSITION, Kind.COLOR_POSITION):
        counts = [1, 1]
    elif kind in (Kind.THREE_OBJECT, Kind.TWO_RELATIONS):
        counts = [1, 1, 1]
    claims = tuple(
        Claim(count=count, shape=shape, color=color if colored else None)
        for count, shape, color in zip(counts, shapes, colors, strict=False)
    )
    plain: set[int] = set()
    if kind is Kind.COLOR_POSITION and rng.random() < _ONE_COLOR_SHARE:
        plain = {int(rng.integers(2))}
    elif kind in (Kind.THREE_OBJECT, Kind.TWO_RELATIONS):
        plain = set(rng.permutation(3)[: int(rng.integers(3))].tolist())
    claims = tuple(replace(claim, color=None) if at in plain else claim for at, claim in enumerate(claims))
    linked = kind in (Kind.POSITION, Kind.COLOR_POSITION, Kind.TWO_RELATIONS)
    every = tuple(Relation)
    return claims, tuple(every[int(rng.integers(len(every)))] for _ in counts[1:] if linked)


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
    return sample_scene(rng, items, caption.relations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Which captions a network is trained on.

    Attributes:
        weights: how often each kind is drawn, of any sum.
        held_out: (claims, relations) that no caption may have.
    """

    weights: Mapping[Kind, float]
    held_out: frozenset[tuple[tuple[Claim, ...], tuple[Relation, ...]]] = frozenset()

    def allows(self, caption: Caption) -> bool:
        """Whether a caption may be trained on."""
        return (caption.claims, caption.relations) not in self.held_out

    def example(self, rng: np.random.Generator, kind: Kind | None = None) -> tuple[Scene, Caption]:
        """Draw a caption, of a kind or of any, and a scene that shows just that."""
        kind = kind or sample_kind(rng, self.weights)
        while not self.allows(caption := sample_caption(rng, kind)):
            pass
        return sample_scene_for(rng, caption), caption


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
