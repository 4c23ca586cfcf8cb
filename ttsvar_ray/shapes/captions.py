"""Captions of the built-in world: GenEval's six kinds over a small closed vocabulary.

A caption is its text plus what the text claims. The grammar is unambiguous: `parse_caption(caption.text)`
gives the claims back, so an image can be judged from the text alone.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ttsvar_ray.errors import InputError
from ttsvar_ray.shapes.geometry import SHAPES, Shape
from ttsvar_ray.shapes.scene import COLORS, Color, Relation, Scene, sample_scene

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
