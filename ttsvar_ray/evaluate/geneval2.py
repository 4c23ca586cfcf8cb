"""GenEval 2 (arXiv 2512.16853): Soft-TIFA, the probability of the right answer to a question about each atom.

Its data are CC BY-NC 4.0: they are read from the user's file and are no part of this package. A line of
`geneval2_data.jsonl` has `prompt`, `vqa_list` (pairs of a question and its right answer), `skills` (one for
each question) and `atom_count`. The arithmetic and the geometric mean are of an image's questions, then the
mean of images is taken; lines of skills are arithmetic, lines by the number of atoms geometric. As the
authors do, a question's probability is the sum over the forms of its answer (capitalised, after a space, in
digits) in the whole distribution of the next word.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttsvar_ray.errors import InputError
from ttsvar_ray.evaluate.questions import (
    AnsweredImage,
    Benchmark,
    Question,
    QuestionPrompt,
    Score,
    by_kind,
    overall,
    read_text,
    score_of,
)


def read(path: Path) -> list[QuestionPrompt]:
    """Return the prompts of a JSONL file; images are named by the number of the line, from "00000".

    Raises:
        InputError: a line that is none of the benchmark's.
    """

    def prompt(number: int, line: str) -> QuestionPrompt:
        try:
            return _prompt(json.loads(line), f"{number:05d}")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: line {number + 1}: expected GenEval 2's prompt and vqa_list, pairs of a question "
                f"and its answer ({type(error).__name__}: {error})"
            ) from None

    return [prompt(number, line) for number, line in enumerate(read_text(path).splitlines())]


def _prompt(line: dict[str, Any], name: str) -> QuestionPrompt:
    pairs, kinds = line["vqa_list"], line.get("skills") or []
    if not pairs:
        raise ValueError("no question")
    has_kinds = len(kinds) == len(pairs)
    atoms = line.get("atom_count")
    return QuestionPrompt(
        name=name,
        text=str(line["prompt"]),
        group="" if atoms is None else f"{int(atoms):2d} atoms",
        questions=tuple(
            Question(text=str(text), answers=(str(answer),), kind=str(kinds[place]) if has_kinds else "")
            for place, (text, answer) in enumerate(pairs)
        ),
    )


def summary(images: Sequence[AnsweredImage]) -> list[Score]:
    """Return both means, then the arithmetic one by skill and the geometric one by number of atoms."""
    arithmetic = score_of("Soft-TIFA AM", ((one.prompt, float(np.mean(_shares(one)))) for one in images))
    geometric, *by_atoms = overall("Soft-TIFA GM", images, lambda one: _geometric(_shares(one)))
    return [arithmetic, geometric, *by_kind(images, _shares), *by_atoms]


def _shares(image: AnsweredImage) -> list[float]:
    return [own[0] for own in image.probabilities]


def _geometric(shares: Sequence[float]) -> float:
    if min(shares) <= 0:
        return 0.0
    return math.exp(math.fsum(map(math.log, shares)) / len(shares))


GENEVAL_2 = Benchmark(
    name="geneval2",
    title="GenEval 2",
    read=read,
    asked="{question} Answer in one word.",
    summary=summary,
    prompts=800,
    images=1,
    notes=("the official judge is Qwen3-VL-8B",),
)
