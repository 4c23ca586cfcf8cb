"""Prompts of the built-in world for tuning and for reporting: fixed, and disjoint as texts.

The world has few things to say (five single objects, fifteen counts), so both sets say all of them, in other
words: the wordings of one meaning are dealt out between the sets. What is tuned on one set has therefore
never seen a text of the other, and since random streams are named by the text, no trajectory of it either.
A set asked for more prompts of a kind than it has texts repeats them, told apart by their ordinals.
The harder kinds have many things to say: their sets share no meanings either.
"""

from __future__ import annotations

import enum
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.shapes.captions import sample_caption, write_caption
from ttsvar_ray.shapes.world import (
    COLORS,
    COUNT_WORDS,
    HARD_KINDS,
    KINDS,
    LONG_RELATIONS,
    SHAPES,
    Caption,
    Claim,
    Kind,
    Relation,
)

_DEAL_SEED = 20507185
"""Seeds the deal and the order; changing it changes every prompt set."""
_HARD_TEXTS = 1000
"""Captions of each harder kind, of both sets together."""


HARD_SET = (Kind.COLOR_POSITION, Kind.THREE_OBJECT)
"""Kinds of the harder prompts: those of the harder kinds that a model of ours gets right at times
(recipes/shapes/hard.py). The others are drawn wrong nearly always, and nothing is told by prompts that no
search can help."""


class PromptSet(str, enum.Enum):
    """What the prompts are for."""

    TUNING = "tuning"
    REPORTING = "reporting"


def prompt_set(name: PromptSet | str, per_kind: int, kinds: Sequence[Kind] = KINDS) -> tuple[Caption, ...]:
    """Return `per_kind` captions of each kind, the kinds taking turns.

    A shorter set is a prefix of a longer one of the same kinds.

    Args:
        name: "tuning" or "reporting".
        per_kind: captions of each kind, 1 or more; beyond the distinct texts of a kind they repeat.
        kinds: which kinds, in which order.

    Raises:
        ValueError: an unknown name, or fewer than one caption.
    """
    if per_kind < 1:
        raise ValueError(f"per_kind: expected at least 1, got {per_kind}")
    columns = [distinct_captions(name, kind) for kind in kinds]
    return tuple(column[row % len(column)] for row in range(per_kind) for column in columns)


def distinct_captions(name: PromptSet | str, kind: Kind) -> tuple[Caption, ...]:
    """Return every caption of a kind in a set, in the set's fixed shuffled order.

    Raises:
        ValueError: an unknown name.
    """
    side = tuple(PromptSet).index(PromptSet(name))
    rng = np.random.default_rng([_DEAL_SEED, tuple(Kind).index(kind)])
    if kind in HARD_KINDS:
        drawn: dict[tuple[object, ...], Caption] = {}
        while len(drawn) < _HARD_TEXTS:
            caption = sample_caption(rng, kind)
            drawn.setdefault((caption.claims, caption.relations), caption)
        return tuple(drawn.values())[side::2]
    dealt: list[Caption] = []
    for claims, relations in _meanings(kind):
        wordings = _wordings(kind, claims, relations)
        hand = rng.permutation(len(wordings))[side::2]
        dealt.extend(wordings[int(i)] for i in sorted(hand))
    return tuple(dealt[int(i)] for i in rng.permutation(len(dealt)))


def geneval_metadata(caption: Caption) -> dict[str, Any]:
    """Return a caption as a line of GenEval's evaluation metadata (tag, include, exclude, prompt)."""
    include: list[dict[str, Any]] = []
    for claim in caption.claims:
        clause: dict[str, Any] = {"class": claim.shape.value, "count": claim.count}
        if claim.color is not None:
            clause["color"] = claim.color.value
        include.append(clause)
    line: dict[str, Any] = {"tag": caption.kind.value, "include": include}
    if caption.relations:
        # GenEval names the place on the later clause, as (relation, index of the clause it is seen from).
        include.reverse()
        for place, relation in enumerate(reversed(caption.relations)):
            include[place + 1]["position"] = [relation.value, place]
    if caption.kind is Kind.COUNTING or caption.kind in HARD_KINDS:
        line["exclude"] = [{"class": c.shape.value, "count": c.count + 1} for c in caption.claims]
    line["prompt"] = caption.text
    return line


def write_prompt_set(path: str | Path, captions: Sequence[Caption]) -> None:
    """Write captions as GenEval metadata, one JSON object a line (UTF-8)."""
    lines = [json.dumps(geneval_metadata(caption)) for caption in captions]
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _meanings(kind: Kind) -> list[tuple[tuple[Claim, ...], tuple[Relation, ...]]]:
    """Return everything the captions of one of GenEval's kinds can claim, in a fixed order."""
    if kind is Kind.SINGLE_OBJECT:
        return [((Claim(count=1, shape=shape),), ()) for shape in SHAPES]
    if kind is Kind.COUNTING:
        return [((Claim(count=n, shape=shape),), ()) for shape in SHAPES for n in COUNT_WORDS]
    if kind is Kind.COLORS:
        return [((Claim(count=1, shape=shape, color=color),), ()) for shape in SHAPES for color in COLORS]
    pairs = list(itertools.permutations(SHAPES, 2))
    if kind is Kind.COLOR_ATTR:
        return [
            ((Claim(count=1, shape=a, color=a_color), Claim(count=1, shape=b, color=b_color)), ())
            for a, b in pairs
            for a_color, b_color in itertools.permutations(COLORS, 2)
        ]
    bare = [(Claim(count=1, shape=a), Claim(count=1, shape=b)) for a, b in pairs]
    if kind is Kind.TWO_OBJECT:
        return [(claims, ()) for claims in bare]
    return [(claims, (relation,)) for claims in bare for relation in Relation]


def _wordings(kind: Kind, claims: tuple[Claim, ...], relations: tuple[Relation, ...]) -> list[Caption]:
    """Return the different texts of one meaning."""
    return [
        write_caption(kind, claims, relations, long_relation=long_relation, prefix=prefix)
        for prefix in (False, True)
        for long_relation in ((False, True) if LONG_RELATIONS.keys() & set(relations) else (False,))
    ]
