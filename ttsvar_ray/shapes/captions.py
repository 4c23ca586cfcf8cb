"""Captions of the built-in world: GenEval's six kinds over a small closed vocabulary.

A caption is its text plus what the text claims. The grammar is unambiguous: `parse_caption(caption.text)`
gives the claims back, so an image can be judged from the text alone.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ttsvar_ray.errors import InputError
from ttsvar_ray.shapes.geometry import SHAPES, Shape
from ttsvar_ray.shapes.scene import COLORS, Color, Relation, Scene, clear_relation, sample_scene

_T = TypeVar("_T")

MAX_WORDS = 12
PREFIX = "a photo of "
"""May stand before any caption, as in GenEval's prompts; changes nothing."""
_PREFIX_SHARE = 0.25
_LONG_RELATION_SHARE = 0.3


class Kind(str, enum.Enum):
    """GenEval's tag of a caption."""

    SINGLE_OBJECT = "single_object"
    TWO_OBJECT = "two_object"
    COUNTING = "counting"
    COLORS = "colors"
    POSITION = "position"
    COLOR_ATTR = "color_attr"


KINDS: tuple[Kind, ...] = tuple(Kind)
KIND_WEIGHTS: dict[Kind, float] = {
    Kind.SINGLE_OBJECT: 0.10,
    Kind.TWO_OBJECT: 0.18,
    Kind.COUNTING: 0.20,
    Kind.COLORS: 0.12,
    Kind.POSITION: 0.20,
    Kind.COLOR_ATTR: 0.20,
}
"""How often each kind is drawn for training: more where there is more to learn."""

COUNT_WORDS: dict[int, str] = {2: "two", 3: "three", 4: "four"}
PLURALS: dict[Shape, str] = {
    shape: shape.value + ("es" if shape.value.endswith("s") else "s") for shape in SHAPES
}
LONG_RELATIONS: dict[Relation, str] = {
    Relation.LEFT: "to the left of",
    Relation.RIGHT: "to the right of",
}
_OPPOSITES: dict[Relation, Relation] = {
    Relation.LEFT: Relation.RIGHT,
    Relation.RIGHT: Relation.LEFT,
    Relation.ABOVE: Relation.BELOW,
    Relation.BELOW: Relation.ABOVE,
}

VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {"a", "photo", "of", "and", "to", "the"}
        | {word for relation in Relation for word in relation.value.split()}
        | set(COUNT_WORDS.values())
        | {color.value for color in COLORS}
        | {shape.value for shape in SHAPES}
        | set(PLURALS.values())
    )
)
"""Every word a caption can hold, sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """So many objects of a shape, in a colour where one is named."""

    count: int
    shape: Shape
    color: Color | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A text and what it claims.

    Attributes:
        text: lower-case words, at most `MAX_WORDS`.
        kind: GenEval's tag.
        claims: one, or two for the kinds that name two objects.
        relation: where the first claim's object is, seen from the second's; None but for positions.
    """

    text: str
    kind: Kind
    claims: tuple[Claim, ...]
    relation: Relation | None = None


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


def parse_caption(text: str) -> Caption:
    """Return the caption of a text of the grammar; case and surrounding blanks do not matter.

    Raises:
        InputError: the text is not of the grammar; says which part was not understood.
    """
    cleaned = " ".join(text.lower().rstrip(" .").split())
    body = cleaned.removeprefix(PREFIX)
    relation: Relation | None = None
    phrases = [body]
    links = [(f" {LONG_RELATIONS.get(r, r.value)} ", r) for r in Relation]
    links += [(f" {r.value} ", r) for r in Relation]
    for link, meaning in [*links, (" and ", None)]:
        if link in body:
            phrases, relation = body.split(link), meaning
            break
    if len(phrases) > 2:
        raise InputError(f"caption {text!r}: expected one or two objects, found {len(phrases)}")
    claims = tuple(_parse_phrase(phrase, text) for phrase in phrases)
    return Caption(text=cleaned, kind=_kind_of(claims, relation, text), claims=claims, relation=relation)


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


def hard_negatives(caption: Caption, rng: np.random.Generator) -> list[Caption]:
    """Return captions of the same kind and wording with one thing wrong, in random order.

    One for each way of going wrong that the kind allows: a shape replaced (one negative per claim), a colour
    replaced (one per named colour), another count, the opposite relation and another one, the objects of a
    relation exchanged, the two colours of an attribution exchanged. No negative is true of a scene that shows
    exactly what the caption claims.
    """
    negatives: list[tuple[tuple[Claim, ...], Relation | None]] = []
    claims, relation = caption.claims, caption.relation
    used_shapes = {claim.shape for claim in claims}
    used_colors = {claim.color for claim in claims}
    for place, claim in enumerate(claims):
        shape = _other(rng, [s for s in SHAPES if s not in used_shapes])
        negatives.append((_replaced(claims, place, claim, shape=shape), relation))
        if claim.color is not None:
            color = _other(rng, [c for c in COLORS if c not in used_colors])
            negatives.append((_replaced(claims, place, claim, color=color), relation))
        if claim.count > 1:
            count = _other(rng, [n for n in COUNT_WORDS if n != claim.count])
            negatives.append((_replaced(claims, place, claim, count=count), relation))
    if relation is not None:
        opposite = _OPPOSITES[relation]
        negatives.append((claims, opposite))
        negatives.append((claims, _other(rng, [r for r in Relation if r not in (relation, opposite)])))
        negatives.append((claims[::-1], relation))
    if caption.kind is Kind.COLOR_ATTR:
        first, second = claims
        exchanged = (
            Claim(count=1, shape=first.shape, color=second.color),
            Claim(count=1, shape=second.shape, color=first.color),
        )
        negatives.append((exchanged, None))
    long_relation = any(text in caption.text for text in LONG_RELATIONS.values())
    prefix = caption.text.startswith(PREFIX)
    return [
        write_caption(caption.kind, *negatives[int(i)], long_relation=long_relation, prefix=prefix)
        for i in rng.permutation(len(negatives))
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
            found.append(write_caption(Kind.POSITION, pair, relation))
        if a.color is not b.color and a.shape in colored and b.shape in colored:
            found.append(write_caption(Kind.COLOR_ATTR, (colored[a.shape], colored[b.shape])))
    return list(dict.fromkeys(found))


def _phrase(claim: Claim) -> str:
    """Return the words of one claim."""
    color = f"{claim.color.value} " if claim.color is not None else ""
    if claim.count == 1:
        return f"a {color}{claim.shape.value}"
    return f"{COUNT_WORDS[claim.count]} {color}{PLURALS[claim.shape]}"


def _parse_phrase(phrase: str, text: str) -> Claim:
    """Return the claim of words such as "a red circle" or "three rings"."""
    words = phrase.split()
    counts = {"a": 1} | {word: count for count, word in COUNT_WORDS.items()}
    colors = {color.value: color for color in COLORS}
    if len(words) not in (2, 3) or words[0] not in counts or (len(words) == 3 and words[1] not in colors):
        raise InputError(
            f"caption {text!r}: expected '<a|two|three|four> [colour] <shape>', found {phrase!r}; "
            f"colours are {', '.join(colors)}"
        )
    count = counts[words[0]]
    shapes = {(shape.value if count == 1 else PLURALS[shape]): shape for shape in SHAPES}
    if words[-1] not in shapes:
        raise InputError(f"caption {text!r}: expected one of {', '.join(shapes)}, found {words[-1]!r}")
    return Claim(count=count, shape=shapes[words[-1]], color=colors[words[1]] if len(words) == 3 else None)


def _kind_of(claims: tuple[Claim, ...], relation: Relation | None, text: str) -> Kind:
    """Return the kind whose captions make such claims."""
    colored = [claim.color is not None for claim in claims]
    plural = any(claim.count > 1 for claim in claims)
    if len(claims) == 1:
        if plural:
            return Kind.COUNTING
        return Kind.COLORS if colored[0] else Kind.SINGLE_OBJECT
    if plural:
        raise InputError(f"caption {text!r}: two kinds of object can only be named one each")
    if claims[0].shape is claims[1].shape:
        raise InputError(f"caption {text!r}: the two objects need different shapes")
    if relation is not None:
        return Kind.POSITION
    return Kind.COLOR_ATTR if any(colored) else Kind.TWO_OBJECT


def _replaced(
    claims: tuple[Claim, ...],
    place: int,
    claim: Claim,
    *,
    shape: Shape | None = None,
    color: Color | None = None,
    count: int | None = None,
) -> tuple[Claim, ...]:
    """Return the claims with one attribute of one of them changed."""
    changed = Claim(count=count or claim.count, shape=shape or claim.shape, color=color or claim.color)
    return (*claims[:place], changed, *claims[place + 1 :])


def _other(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    """Draw one of several choices."""
    return choices[int(rng.integers(len(choices)))]
