"""Judges an image of the built-in world against a caption by GenEval's rules.

The objects come from `find_objects`, best fit first, and stand in for GenEval's detections: every claim
takes the `count` best objects of its shape; fewer is wrong; a counting caption is wrong when there are more;
a colour must be that of exactly the objects taken; a relation must hold between them. Objects that are not
named are allowed. Of the harder kinds every count is exact: "a ring" is one ring there. Limits:
docs/shapes_world.md.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttsvar_ray.errors import InputError
from ttsvar_ray.rewards.protocol import PlainReward
from ttsvar_ray.shapes.detection import FoundObject, find_objects
from ttsvar_ray.shapes.world import HARD_KINDS, Caption, Claim, Kind, Relation, parse_caption
from ttsvar_ray.types import Float32Array, UInt8Array

Box = tuple[float, float, float, float]

POSITION_SLACK = 0.1
"""Share of the two boxes' sizes by which an offset is shortened before it counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether an image shows what a caption claims.

    Attributes:
        reason: what was expected and found, for every claim that fails; empty when correct.
        objects: everything seen in the image, best fit first.
    """

    correct: bool
    reason: str
    objects: tuple[FoundObject, ...]


def check(image: UInt8Array, caption: Caption | str) -> Verdict:
    """Judge one image against one caption.

    Args:
        image: uint8 [height, width, 3].
        caption: a caption, or its text.

    Raises:
        InputError: a text outside the grammar.
        ValueError: not such an image.
    """
    if isinstance(caption, str):
        caption = parse_caption(caption)
    return judge(find_objects(image), caption)


class ExactChecker(PlainReward):
    """The checker as a score, 1 where an image is correct: to evaluate with, not to search with."""

    name = "shapes-checker"

    def __init__(self, device: str = "cpu") -> None:
        """Take the device that every reward is given; the checker uses none."""

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n] of 0 and 1, of texts outside the grammar NaN; `images` [n, height, width, 3]."""
        verdicts = np.full(len(texts), np.nan, dtype=np.float32)
        for place, (image, text) in enumerate(zip(images, texts, strict=True)):
            with contextlib.suppress(InputError):
                verdicts[place] = check(image, text).correct
        return verdicts


def judge(objects: tuple[FoundObject, ...], caption: Caption) -> Verdict:
    """Judge the objects of an image, best fit first, against a caption."""
    problems: list[str] = []
    taken = [_take(objects, claim, problems) for claim in caption.claims]
    if caption.kind is Kind.COUNTING or caption.kind in HARD_KINDS:
        for claim in caption.claims:
            seen = sum(item.shape is claim.shape for item in objects)
            if seen > claim.count:
                problems.append(f"{claim.shape.value}: expected exactly {claim.count}, found {seen}")
    for place, relation in enumerate(() if problems else caption.relations):
        (a,), (b,) = taken[place : place + 2]  # captions with relations name one object each
        held = relative_position(a.box, b.box)
        if relation not in held:
            names = " and ".join(other.value for other in held) or "nowhere in particular of"
            first, second = (claim.shape.value for claim in caption.claims[place : place + 2])
            problems.append(f"expected {first} {relation.value} {second}, found {names}")
    return Verdict(correct=not problems, reason="; ".join(problems), objects=objects)


def _take(objects: Sequence[FoundObject], claim: Claim, problems: list[str]) -> list[FoundObject]:
    """Return the best objects of a claim's shape, adding to the problems what is wrong with them."""
    taken = [item for item in objects if item.shape is claim.shape][: claim.count]
    if len(taken) < claim.count:
        problems.append(f"{claim.shape.value}: expected {claim.count}, found {len(taken)}")
    elif claim.color is not None:
        fitting = sum(item.color is claim.color for item in taken)
        if fitting < claim.count:
            seen = ", ".join(item.color.value if item.color else "no named colour" for item in taken)
            problems.append(f"{claim.shape.value}: expected {claim.count} {claim.color.value}, found {seen}")
    return taken


def relative_position(a: Box, b: Box) -> tuple[Relation, ...]:
    """Return where box `a` is, seen from box `b`: none, one or two relations.

    The offset between the centres is shortened on each axis by a tenth of both boxes' sizes, and a direction
    is named when what remains is more than half of the whole offset's length.

    Source: GenEval, evaluation/evaluate_images.py, relative_position.
    """
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    left_x = max(abs(dx) - POSITION_SLACK * (a[2] - a[0] + b[2] - b[0]), 0.0)
    left_y = max(abs(dy) - POSITION_SLACK * (a[3] - a[1] + b[3] - b[1]), 0.0)
    if left_x < 1e-3 and left_y < 1e-3:
        return ()
    length = math.hypot(dx, dy)
    held: list[Relation] = []
    if left_x / length > 0.5:
        held.append(Relation.LEFT if dx < 0 else Relation.RIGHT)
    if left_y / length > 0.5:
        held.append(Relation.ABOVE if dy < 0 else Relation.BELOW)
    return tuple(held)
