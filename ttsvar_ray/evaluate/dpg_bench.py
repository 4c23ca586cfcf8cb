"""DPG-Bench (ELLA, arXiv 2403.05135): long prompts, yes or no questions, and which question rests on which.

Read from the user's `dpg_bench.csv`. The official judge is mPLUG-large, which is not used here. A question
counts only where those it depends on hold, and so on up; an image's score is the share of its questions
that count, the benchmark's 100 times the mean over prompts. "0" in the column `dependency` is no question.
Four images of a prompt are one picture of 2 x 2; scores of kinds (`category_broad`) are shares of yes before
the rule.

Differs from the authors' code: there the file's first question is left out, so that the first prompt cannot
be judged where another of its questions depends on it; and scores of kinds are of the last of a prompt's
images, here of all.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ttsvar_ray.errors import InputError
from ttsvar_ray.evaluate.questions import (
    AnsweredImage,
    Benchmark,
    Question,
    QuestionPrompt,
    Score,
    by_kind,
    read_text,
    score_of,
)

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "category_broad", "question_natural_language")


def read(path: Path) -> list[QuestionPrompt]:
    """Return the prompts of the CSV file; images are named by `item_id`.

    Raises:
        InputError: a column or a question that is not there.
    """
    lines = csv.DictReader(io.StringIO(read_text(path)))
    if missing := [name for name in COLUMNS if name not in (lines.fieldnames or ())]:
        raise InputError(f"{path}: expected DPG-Bench's columns, found no {', '.join(missing)}")
    items: dict[str, dict[int, Mapping[str, str]]] = {}
    for line in lines:
        number = line["proposition_id"]
        if not (number or "").isdecimal():
            raise InputError(
                f"{path}: line {lines.line_num}: proposition_id: expected a number, got {number!r}"
            )
        items.setdefault(line["item_id"], {})[int(number)] = line
    return [_prompt(name, questions, path) for name, questions in items.items()]


def _prompt(name: str, lines: Mapping[int, Mapping[str, str]], path: Path) -> QuestionPrompt:
    places = {number: place for place, number in enumerate(lines)}

    def question(number: int, line: Mapping[str, str]) -> Question:
        try:
            rests_on = [int(one) for one in line["dependency"].split(",") if int(one)]
            parents = tuple(places[one] for one in rests_on)
        except (ValueError, KeyError, AttributeError):
            raise InputError(
                f"{path}: {name}: question {number}: dependency: expected numbers of its questions, or 0, "
                f"got {line['dependency']!r}"
            ) from None
        return Question(text=line["question_natural_language"], parents=parents, kind=line["category_broad"])

    text = next(iter(lines.values()))["text"]
    questions = tuple(question(number, line) for number, line in lines.items())
    return QuestionPrompt(name=name, text=text, group="", questions=questions)


def summary(images: Sequence[AnsweredImage]) -> list[Score]:
    """Return the benchmark's score from 0 to 100, then the share of yes by kind of question."""
    return [
        score_of("DPG-Bench", ((one.prompt, 100 * float(np.mean(one.counts))) for one in images)),
        *by_kind(images, lambda one: [100.0 * value for value in one.holds]),
    ]


DPG_BENCH = Benchmark(
    name="dpg-bench",
    title="DPG-Bench",
    read=read,
    asked="{question} Please answer yes or no.",
    summary=summary,
    prompts=1065,
    images=4,
    grid=2,
    notes=("not the official judge, which is mPLUG-large: compare with scores of this judge alone",),
)
