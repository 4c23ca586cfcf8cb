"""Benchmarks that ask questions about images: prompts, questions, and a rule that makes a summary of answers.

A `Benchmark` is one small file that reads the questions of its authors from where the user has them, and says
what answers mean; `evaluate/benchmarks.py` lists them. Who answers is another matter (`question_judge`): it
gives each question's answers their probabilities, whichever benchmark asks.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ttsvar_ray.errors import InputError, brief

Line = TypeVar("Line")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question about an image.

    Attributes:
        text: as it is asked.
        answers: whose probabilities are wanted, the right one first.
        parents: 0-based places of questions of the same prompt without which this one means nothing.
        kind: what it is about; "" where nobody says.
    """

    text: str
    answers: tuple[str, ...] = ("yes", "no")
    parents: tuple[int, ...] = ()
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionPrompt:
    """One prompt and what is asked of its images.

    Attributes:
        name: that image files go by.
        text: what images are drawn from; "" where the questions' file does not say it.
        group: line of the summary.
        questions: at least one.
    """

    name: str
    text: str
    group: str
    questions: tuple[Question, ...]

    @property
    def key(self) -> str:
        """Return one line of JSON that equal prompts share, with all that is asked."""
        asked = [[one.text, one.answers, one.parents] for one in self.questions]
        return json.dumps([self.name, self.text, asked], ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredImage:
    """What a judge said of one image.

    Attributes:
        probabilities: of each question's answers.
    """

    prompt: QuestionPrompt
    probabilities: Sequence[Sequence[float]]

    @property
    def holds(self) -> list[bool]:
        """Whether the first answer of each question is the likeliest of those it has."""
        return [own[0] > max(own[1:], default=0.5) for own in self.probabilities]

    @property
    def counts(self) -> list[bool]:
        """Whether each question holds and so do those it rests on, and theirs."""
        known: dict[int, bool] = {}
        holds = self.holds

        def does(place: int) -> bool:
            if place not in known:
                known[place] = False  # of a circle nothing counts
                known[place] = holds[place] and all(map(does, self.prompt.questions[place].parents))
            return known[place]

        return [does(place) for place in range(len(holds))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One number of a summary.

    Attributes:
        mean: over prompts, each the mean of its images; of a line about kinds of questions, over questions.
        standard_error: over prompts, each the mean of its images; None for one prompt.
        prompts, images: how many; of a line about kinds of questions, `images` are questions.
    """

    name: str
    mean: float
    standard_error: float | None
    prompts: int
    images: int


Summary = Callable[[Sequence[AnsweredImage]], list[Score]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A benchmark; see the module docstring.

    Attributes:
        name: in the command.
        title: for people.
        read: the prompts of a questions' file or folder, in order. Raises `InputError`.
        asked: what the judge is told, with `{question}` in it.
        summary: the benchmark's scores, the one that it is known by first.
        prompts: how many it has.
        images: that published scores have of each prompt.
        grid: a picture file of its layout holds so many images beside each other, and below each other.
        has_black_cells: a black cell of such a picture is none of its images.
        name_of_file: the prompt's name by the path of a file below the folder of images.
        name_of_row: likewise by a run's row, or None where prompts are found by their text.
        notes: why scores are not those of its authors.
    """

    name: str
    title: str
    read: Callable[[Path], list[QuestionPrompt]]
    asked: str
    summary: Summary
    prompts: int
    images: int
    grid: int = 1
    has_black_cells: bool = False
    name_of_file: Callable[[Path], str] = lambda path: path.stem
    name_of_row: Callable[[Mapping[str, Any]], str] | None = None
    notes: tuple[str, ...] = ()


def score_of(
    name: str, images: Iterable[tuple[QuestionPrompt, float]], *, over_prompts: bool = True
) -> Score:
    """Return a line: the mean over prompts, or else over all values, and its error over prompts."""
    by_prompt: dict[str, list[float]] = {}
    for prompt, value in images:
        by_prompt.setdefault(prompt.name, []).append(value)
    values = [value for own in by_prompt.values() for value in own]
    means = np.array([np.mean(own) for own in by_prompt.values()])
    error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    mean = float(np.mean(means if over_prompts else values))
    return Score(name=name, mean=mean, standard_error=error, prompts=len(means), images=len(values))


def overall(
    name: str, images: Sequence[AnsweredImage], value: Callable[[AnsweredImage], float]
) -> list[Score]:
    """Return a line of all prompts and one for each group of them; a prompt is the mean of its images."""
    groups: dict[str, list[tuple[QuestionPrompt, float]]] = {}
    for image in images:
        groups.setdefault(image.prompt.group, []).append((image.prompt, value(image)))
    lines = [score_of(group, groups[group]) for group in sorted(groups) if group]
    return [score_of(name, (one for own in groups.values() for one in own)), *lines]


def by_kind(
    images: Sequence[AnsweredImage], values: Callable[[AnsweredImage], Sequence[float]]
) -> list[Score]:
    """Return a line for each kind of question: the mean of its questions' values."""
    kinds: dict[str, list[tuple[QuestionPrompt, float]]] = {}
    for image in images:
        for question, value in zip(image.prompt.questions, values(image), strict=True):
            kinds.setdefault(question.kind, []).append((image.prompt, value))
    return [score_of(kind, kinds[kind], over_prompts=False) for kind in sorted(kinds) if kind]


def questions_digest(prompts: Iterable[QuestionPrompt]) -> str:
    """Return the sha256 of prompts with all that is asked, whatever their order."""
    return hashlib.sha256("\n".join(sorted(prompt.key for prompt in prompts)).encode()).hexdigest()


def read_lines(path: Path, read: Callable[[int, str], Line], *, expected: str) -> list[Line]:
    """Return what each line of a file is, as `read` makes it of the line's number, from 1, and its text.

    Raises:
        InputError: the file cannot be read, or a line is not what was expected.
    """
    texts, lines = read_text(path).splitlines(), list[Line]()
    try:
        for text in texts:
            lines.append(read(len(lines) + 1, text))
    except (ValueError, KeyError, TypeError) as error:
        where = f"{path}: line {len(lines) + 1}"
        raise InputError(f"{where}: expected {expected} ({type(error).__name__}: {error})") from None
    return lines


def read_text(path: Path) -> str:
    """Return a file of questions.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a file of questions ({brief(error)})") from None
