"""What GenEval asks of an image: object classes, counts, colors and positions, from its metadata lines.

The metadata are a prompt's `tag`, `include` and `exclude`, as `evaluation_metadata.jsonl` has them. Counts of
`include` are met by at least so many objects, those of `exclude` are broken by so many.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ttsvar_ray.errors import InputError

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The benchmark's six kinds of prompt: 80, 99, 80, 94, 100 and 100 of them."""

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")

_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, "
    "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, "
    "backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, "
    "baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, "
    "knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, "
    "chair, couch, potted plant, bed, dining table, toilet, tv, laptop, computer mouse, tv remote, "
    "computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, "
    "scissors, teddy bear, hair drier, toothbrush"
)
CLASS_NAMES = tuple(_NAMES.split(", "))
"""In the detector's order: those of COCO, three of them (64 to 66) named as GenEval does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One entry of `include` or `exclude`.

    Attributes:
        class_name: one of `CLASS_NAMES`.
        count: how many objects of it.
        color: that many of them have this color; None where the color does not matter.
        relation: where each of them is, as seen from each object of the clause `target`; None: anywhere.
        target: 0-based place of an earlier clause of `include`.
    """

    class_name: str
    count: int
    color: str | None = None
    relation: str | None = None
    target: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenEvalPrompt:
    """One prompt of the benchmark.

    Attributes:
        tag: its kind; a counting prompt asks more of the detector's confidence.
        text: what the image was drawn from.
        include: what must be there, all of it.
        exclude: what must not be there, none of it.
    """

    tag: str
    text: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    @property
    def key(self) -> str:
        """Return one line of JSON that equal prompts share, whatever file or run they come from."""
        told = [self.tag, self.text, *([_told(one) for one in part] for part in (self.include, self.exclude))]
        return json.dumps(told, ensure_ascii=False)


def read_prompt(metadata: Mapping[str, Any], *, where: str) -> GenEvalPrompt:
    """Return the prompt of a metadata line, or of the columns of a run's row.

    Args:
        metadata: `tag`, `prompt`, `include` and maybe `exclude`; other keys are not looked at.
        where: for messages: the file, or the run and row.

    Raises:
        InputError: a key is missing, or a clause asks what no detector here can answer.
    """
    missing = [name for name in ("tag", "prompt", "include") if metadata.get(name) is None]
    if missing:
        raise InputError(
            f"{where}: expected GenEval's metadata tag, prompt and include, found no {', '.join(missing)}; "
            "draw from its evaluation_metadata.jsonl, whose columns are carried along"
        )
    include, exclude = metadata["include"], metadata.get("exclude") or []
    if not isinstance(include, list) or not isinstance(exclude, list) or not include:
        raise InputError(
            f"{where}: include, exclude: expected lists of clauses, found {include!r}, {exclude!r}"
        )
    return GenEvalPrompt(
        tag=str(metadata["tag"]),
        text=str(metadata["prompt"]),
        include=tuple(_clause(one, place, f"{where}: include[{place}]") for place, one in enumerate(include)),
        exclude=tuple(_clause(one, 0, f"{where}: exclude[{place}]") for place, one in enumerate(exclude)),
    )


def prompts_digest(prompts: Iterable[GenEvalPrompt]) -> str:
    """Return the sha256 of the set of prompts, whatever their order and however often each is there."""
    return hashlib.sha256("\n".join(sorted({prompt.key for prompt in prompts})).encode()).hexdigest()


def _clause(content: Any, earlier: int, where: str) -> Clause:
    """Return a clause that `earlier` others precede."""
    try:
        relation, target = content.get("position") or (None, None)
        clause = Clause(
            class_name=content["class"],
            count=content["count"],
            color=content.get("color"),
            relation=relation,
            target=target,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: expected a class and a count, found {content!r}") from error
    problems = [
        f"{name}: expected {expected}, found {found!r}"
        for name, expected, found, is_right in (
            ("class", "one of GenEval's 80", clause.class_name, clause.class_name in CLASS_NAMES),
            ("count", "a whole number from 1", clause.count, _is_index(clause.count) and clause.count > 0),
            ("color", f"one of {', '.join(COLORS)}", clause.color, clause.color in (None, *COLORS)),
            ("position", f"one of {', '.join(RELATIONS)}", relation, relation in (None, *RELATIONS)),
            ("position", "an earlier clause", target, relation is None or _is_index(target, earlier)),
        )
        if not is_right
    ]
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}")
    return clause


def _is_index(value: Any, most: int | None = None) -> bool:
    """Return whether a value is a whole number from 0, and below `most`."""
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= 0
        and (most is None or value < most)
    )


def _told(clause: Clause) -> list[Any]:
    return [clause.class_name, clause.count, clause.color, clause.relation, clause.target]
