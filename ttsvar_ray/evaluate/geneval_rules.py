"""GenEval's rules: what a detector found, and whether the prompt is met. Pure functions.

Numbers are float32 as the detector's are, so that comparisons at a threshold fall as in the official code.

Source: "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment" (arXiv 2310.11513) and
    its evaluation code, whose verdicts the tests and `ttsvar-ray verify geneval` compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttsvar_ray.evaluate.geneval_prompts import COLORS, Clause, GenEvalPrompt
from ttsvar_ray.types import Float32Array

COUNTING = "counting"

_SAME_PLACE = 1e-3
"""Offsets of less than this, in pixels and after shrinking, are none."""
_HALF = 0.5
"""A direction counts where the unit offset points at least so far in it: two may, near a diagonal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenEvalRules:
    """The official options, at their official values.

    Attributes:
        threshold: an object counts above this score.
        counting_threshold: the same for prompts of the tag "counting".
        max_objects: most objects of one class, the surest ones.
        max_overlap: objects that overlap a surer one of their class by at least this IoU are dropped; at 1
            none is.
        position_threshold: share of both objects' sizes that does not count as an offset.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """One object that a detector found.

    Attributes:
        box: float32 [4]: left, top, right and bottom in pixels; right and bottom are outside.
        score: float32 in 0 to 1.
        mask: whatever `Colors` needs beside the box; the rules do not look at it.
    """

    box: Float32Array
    score: np.float32
    mask: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether an image meets its prompt.

    Attributes:
        reasons: why it does not, one line each.
        kept: objects that counted, by class, surest first.
    """

    correct: bool
    reasons: tuple[str, ...]
    kept: Mapping[str, Sequence[Detected]]


Colors = Callable[[Sequence[Detected], str], Sequence[str]]
"""(objects, class name) -> one of `COLORS` for each; asked only where a clause needs it."""


def judge(
    prompt: GenEvalPrompt,
    found: Mapping[str, Sequence[Detected]],
    colors_of: Colors,
    rules: GenEvalRules,
) -> Verdict:
    """Return the verdict on one image.

    Each clause of `include` is answered by the surest objects of its class; `exclude` looks at all.

    Args:
        found: everything that the detector found, by class and in any order.
    """
    kept = {
        name: objects for name, all_of_it in found.items() if (objects := _keep(all_of_it, prompt, rules))
    }
    reasons: list[str] = []
    matched: list[Sequence[Detected] | None] = []
    for clause in prompt.include:
        objects = kept.get(clause.class_name, [])[: clause.count]
        problem = (
            _too_few(clause, objects)
            or _wrong_color(clause, objects, colors_of)
            or _wrong_place(clause, objects, matched, rules)
        )
        matched.append(None if problem else objects)
        if problem:
            reasons.append(problem)
    for clause in prompt.exclude:
        number = len(kept.get(clause.class_name, []))
        if number >= clause.count:
            reasons.append(f"{clause.class_name}: {number}, fewer than {clause.count} allowed")
    return Verdict(correct=not reasons, reasons=tuple(reasons), kept=kept)


def overlap(first: Float32Array, second: Float32Array) -> float:
    """Return the IoU of two boxes [4], each taken to end one pixel later; 0 where both are empty."""
    shared = np.concatenate([np.maximum(first[:2], second[:2]), np.minimum(first[2:4], second[2:4])])
    both = _area(shared)
    either = _area(first) + _area(second) - both
    return float(both / either) if either else 0.0


def relations(this: Float32Array, other: Float32Array, position_threshold: float) -> frozenset[str]:
    """Return where box `this` [4] lies, as seen from `other`: up to two of `RELATIONS`.

    The offset of the centres is shortened on each axis by a share of both sizes; what is left is compared
    with the length of the whole offset.
    """
    corners = np.stack([this[:4], other[:4]]).reshape(2, 2, 2)
    centres, sizes = corners.mean(axis=1), np.abs(corners[:, 1] - corners[:, 0])
    offset = centres[0] - centres[1]
    slack = position_threshold * (sizes[0] + sizes[1])
    left = np.maximum(np.abs(offset) - slack, 0) * np.sign(offset)
    if np.all(np.abs(left) < _SAME_PLACE):
        return frozenset()
    x, y = left / np.linalg.norm(offset)
    holds = {"left of": x < -_HALF, "right of": x > _HALF, "above": y < -_HALF, "below": y > _HALF}
    return frozenset(name for name, is_so in holds.items() if is_so)


def _keep(objects: Sequence[Detected], prompt: GenEvalPrompt, rules: GenEvalRules) -> list[Detected]:
    """Return the objects of one class that count, surest first."""
    threshold = rules.counting_threshold if prompt.tag == COUNTING else rules.threshold
    scores = np.array([one.score for one in objects], np.float32)
    order = np.argsort(scores, kind="stable")[::-1]
    sure = [objects[place] for place in order if scores[place] > np.float32(threshold)][: rules.max_objects]
    if rules.max_overlap == 1.0:
        return sure
    kept: list[Detected] = []
    for one in sure:
        if all(overlap(surer.box, one.box) < rules.max_overlap for surer in kept):
            kept.append(one)
    return kept


def _too_few(clause: Clause, objects: Sequence[Detected]) -> str:
    if len(objects) >= clause.count:
        return ""
    return f"{clause.class_name}: {len(objects)} of {clause.count}"


def _wrong_color(clause: Clause, objects: Sequence[Detected], colors_of: Colors) -> str:
    if clause.color is None:
        return ""
    answers = list(colors_of(objects, clause.class_name))
    if answers.count(clause.color) >= clause.count:
        return ""
    seen = ", ".join(f"{answers.count(color)} {color}" for color in COLORS if color in answers)
    return f"{clause.class_name}: {clause.count} {clause.color} asked, {seen}"


def _wrong_place(
    clause: Clause,
    objects: Sequence[Detected],
    matched: Sequence[Sequence[Detected] | None],
    rules: GenEvalRules,
) -> str:
    if clause.relation is None or clause.target is None:
        return ""
    targets = matched[clause.target]
    if targets is None:
        return f"{clause.class_name}: nothing to be {clause.relation}"
    for one in objects:
        for target in targets:
            seen = relations(one.box, target.box, rules.position_threshold)
            if clause.relation not in seen:
                place = " and ".join(sorted(seen)) or "nowhere clear"
                return f"{clause.class_name}: {clause.relation} asked, {place}"
    return ""


def _area(box: Float32Array) -> np.floating:
    """Return the pixels of a box that ends one pixel later on each axis."""
    sides = np.maximum(box[2:4] - box[:2] + 1, 0)
    area: np.floating = sides[0] * sides[1]
    return area
