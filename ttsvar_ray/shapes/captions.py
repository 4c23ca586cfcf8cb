"""Captions of the built-in world: GenEval's six kinds over a small closed vocabulary.

A caption is its text plus what the text claims. The grammar is unambiguous: `parse_caption(caption.text)`
gives the claims back, so an image can be judged from the text alone.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ttsvar_ray.errors import InputError
from ttsvar_ray.shapes.world import COLORS, SHAPES, Color, Relation, Shape

MAX_WORDS = 12
PREFIX = "a photo of "
"""May stand before any caption, as in GenEval's prompts; changes nothing."""


class Kind(str, enum.Enum):
    """GenEval's tag of a caption."""

    SINGLE_OBJECT = "single_object"
    TWO_OBJECT = "two_object"
    COUNTING = "counting"
    COLORS = "colors"
    POSITION = "position"
    COLOR_ATTR = "color_attr"


KINDS: tuple[Kind, ...] = tuple(Kind)
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
