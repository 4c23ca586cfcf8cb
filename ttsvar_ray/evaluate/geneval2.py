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

import numpy as np

from ttsvar_ray.evaluate.questions import (
    AnsweredImage,
    Benchmark,
    Question,
    QuestionPrompt,
    Score,
    by_kind,
    overall,
    read_lines,
    score_of,
)


def read(path: Path) -> list[QuestionPrompt]:
    """Return the prompts of a JSONL file; images are named by the number of the line, from "00000".

    Raises:
        InputError: a line that is none of the benchmark's.
    """
    expected = "GenEval 2's prompt and vqa_list, pairs of a question and its answer"
    return read_lines(path, _prompt, expected=expected)


def _prompt(number: int, line: str) -> QuestionPrompt:
    told = json.loads(line)
    pairs, kinds = told["vqa_list"], told.get("skills") or []
    if not pairs:
        raise ValueError("no question")
    has_kinds = len(kinds) == len(pairs)
    atoms = told.get("atom_count")
    return QuestionPrompt(
        name=f"{number - 1:05d}",
        text=str(told["prompt"]),
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
