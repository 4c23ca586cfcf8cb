"""The built-in world: five shapes, six colours, four relations, and captions over a small closed vocabulary.

The set of shapes was chosen for identity at coarse scales. Every pair was blurred to the resolution of a 6x6
(12x12) token grid and compared at the best relative size and angle: circle, ring, cross, bar and moon are
never closer than 0.20 (0.41) in relative L2 distance, whereas a circle and a square are at 0.05 (0.14).
Coordinates are x right, y down, in units of the object's radius.

Captions are GenEval's six kinds and four harder ones. A caption is its text plus what the text claims. The
grammar is unambiguous: `parse_caption(caption.text)` gives the claims back, so an image can be judged from
the text alone.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttsvar_ray.errors import InputError

FloatArray = npt.NDArray[np.floating]


class Shape(str, enum.Enum):
    """What an object is; the value is the word used in captions."""

    CIRCLE = "circle"
    RING = "ring"
    CROSS = "cross"
    BAR = "bar"
    MOON = "moon"


SHAPES: tuple[Shape, ...] = tuple(Shape)
"""Shapes in the order of their class index."""
RING_MIDLINE, RING_HALF_WIDTH = 0.80, 0.26
CROSS_LENGTH, CROSS_HALF_WIDTH = 1.15, 0.30
BAR_LENGTH, BAR_HALF_WIDTH = 1.20, 0.42
MOON_OUTER, MOON_INNER, MOON_OFFSET = 1.10, 0.85, 0.60
# The crescent spans [-1.10, tip]; shifting it by this much puts the middle of its box at the origin.
MOON_TIP = (MOON_OUTER**2 - MOON_INNER**2 + MOON_OFFSET**2) / (2 * MOON_OFFSET)
MOON_SHIFT = (MOON_OUTER - MOON_TIP) / 2


def signed_distance(shape: Shape, x: FloatArray, y: FloatArray) -> FloatArray:
    """Return the signed distance of points to a shape of unit radius (negative inside).

    Exact along the edges; at corners it is the Chebyshev bound, which only sharpens an anti-aliased corner.

    Args:
        x, y: coordinates in the object's own frame, any shape, in radii.
    """
    if shape is Shape.CIRCLE:
        return np.asarray(np.hypot(x, y) - 1.0)
    if shape is Shape.RING:
        return np.asarray(np.abs(np.hypot(x, y) - RING_MIDLINE) - RING_HALF_WIDTH)
    if shape is Shape.MOON:
        left = x - MOON_SHIFT
        outer, inner = np.hypot(left, y) - MOON_OUTER, MOON_INNER - np.hypot(left - MOON_OFFSET, y)
        return np.asarray(np.maximum(outer, inner))
    horizontal, vertical = np.abs(x), np.abs(y)
    if shape is Shape.BAR:
        return np.maximum(horizontal - BAR_LENGTH, vertical - BAR_HALF_WIDTH)
    long = np.maximum(horizontal, vertical)
    short = np.minimum(horizontal, vertical)
    return np.maximum(long - CROSS_LENGTH, short - CROSS_HALF_WIDTH)


Rgb = tuple[int, int, int]


class Color(str, enum.Enum):
    """What colour an object has; the value is the word used in captions."""

    RED = "red"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    PURPLE = "purple"
    CYAN = "cyan"


COLORS: tuple[Color, ...] = tuple(Color)
"""Colours in the order of their class index."""
PALETTE: dict[Color, Rgb] = {
    Color.RED: (220, 40, 40),
    Color.GREEN: (40, 165, 60),
    Color.BLUE: (45, 80, 225),
    Color.YELLOW: (242, 205, 35),
    Color.PURPLE: (160, 45, 180),
    Color.CYAN: (40, 200, 220),
}


class Relation(str, enum.Enum):
    """Where the first object is, seen from the second."""

    LEFT = "left of"
    RIGHT = "right of"
    ABOVE = "above"
    BELOW = "below"


MAX_WORDS = 13
"""Of any caption: the networks read 16 tokens, two or fewer of their own, and a full stop is one, too."""
PREFIX = "a photo of "
"""May stand before any caption, as in GenEval's prompts; changes nothing."""


class Kind(str, enum.Enum):
    """GenEval's tag of a caption, or the name of a kind that GenEval lacks."""

    SINGLE_OBJECT = "single_object"
    TWO_OBJECT = "two_object"
    COUNTING = "counting"
    COLORS = "colors"
    POSITION = "position"
    COLOR_ATTR = "color_attr"
    COLOR_POSITION = "color_position"
    TWO_COUNTS = "two_counts"
    THREE_OBJECT = "three_object"
    TWO_RELATIONS = "two_relations"


HARD_KINDS: tuple[Kind, ...] = (
    Kind.COLOR_POSITION,
    Kind.TWO_COUNTS,
    Kind.THREE_OBJECT,
    Kind.TWO_RELATIONS,
)
"""The harder kinds. They are exact: an image shows as many of every named shape as are named, and no more."""
KINDS: tuple[Kind, ...] = tuple(kind for kind in Kind if kind not in HARD_KINDS)
"""GenEval's."""
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
        kind: what it is about.
        claims: one to three, of different shapes.
        relations: where each claim's object is, seen from the next claim's; empty but for positions. "A ring
            above a bar left of a moon" says that the ring is above the bar, and the bar left of the moon.
    """

    text: str
    kind: Kind
    claims: tuple[Claim, ...]
    relations: tuple[Relation, ...] = ()


_RELATION_WORDS: dict[str, Relation] = {words: relation for relation, words in LONG_RELATIONS.items()} | {
    relation.value: relation for relation in Relation
}
_LINK = re.compile(f" ({'|'.join([*_RELATION_WORDS, 'and'])}) ")


def parse_caption(text: str) -> Caption:
    """Return the caption of a text of the grammar; case and surrounding blanks do not matter.

    Raises:
        InputError: the text is not of the grammar; says which part was not understood.
    """
    cleaned = " ".join(text.lower().rstrip(" .").split())
    body = cleaned.removeprefix(PREFIX)
    parts = _LINK.split(body)
    phrases, links = parts[::2], parts[1::2]
    relations = tuple(_RELATION_WORDS[link] for link in links if link != "and")
    if len(phrases) > 3:
        raise InputError(f"caption {text!r}: expected one to three objects, found {len(phrases)}")
    if relations and "and" in links:
        raise InputError(f"caption {text!r}: expected 'and' or places between the objects, found both")
    claims = tuple(_parse_phrase(phrase, text) for phrase in phrases)
    return Caption(text=cleaned, kind=_kind_of(claims, relations, text), claims=claims, relations=relations)


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


def _kind_of(claims: tuple[Claim, ...], relations: tuple[Relation, ...], text: str) -> Kind:
    """Return the kind whose captions make such claims."""
    colored = any(claim.color is not None for claim in claims)
    plural = any(claim.count > 1 for claim in claims)
    if len(claims) == 1:
        if plural:
            return Kind.COUNTING
        return Kind.COLORS if colored else Kind.SINGLE_OBJECT
    if len({claim.shape for claim in claims}) < len(claims):
        raise InputError(f"caption {text!r}: the objects need different shapes")
    if plural and (relations or len(claims) > 2):
        raise InputError(f"caption {text!r}: objects in places, or three, can only be named one each")
    if len(claims) == 3:
        return Kind.TWO_RELATIONS if relations else Kind.THREE_OBJECT
    if plural:
        return Kind.TWO_COUNTS
    if relations:
        return Kind.COLOR_POSITION if colored else Kind.POSITION
    return Kind.COLOR_ATTR if colored else Kind.TWO_OBJECT
