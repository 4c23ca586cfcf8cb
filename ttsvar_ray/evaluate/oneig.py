"""OneIG-Bench's alignment (arXiv 2506.07977): yes or no questions about a picture, and which rests on which.

Read from the folder `Q_D` of the authors' repository, a JSON file for each class (`anime.json`,
`human.json`, `object.json`): `{"000": {"question": {"1": "..."}, "dependency": {"1": [0]}}}`, where both may
be texts of such JSON, and 0 is no question. A question counts only where those it depends on hold, whatever
those depend on themselves; an image's score is the share of its questions that count, the benchmark's the
mean over prompts. Pictures are grids, whose black cells are no images. Its other measures (text, reasoning,
style, diversity) are not these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttsvar_ray.dataset.export import oneig_place
from ttsvar_ray.errors import InputError
from ttsvar_ray.evaluate.questions import (
    AnsweredImage,
    Benchmark,
    Question,
    QuestionPrompt,
    Score,
    overall,
    read_text,
)

CLASSES = ("anime", "human", "object")


def read(path: Path) -> list[QuestionPrompt]:
    """Return the prompts of a folder of questions; images are named "anime/000".

    Raises:
        InputError: a file that is not there, or is another one.
    """

    def of_class(name: str) -> list[QuestionPrompt]:
        file = path / f"{name}.json"
        try:
            items = json.loads(read_text(file))
            return [_prompt(f"{name}/{number}", name, item) for number, item in items.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f'{file}: expected {{"000": {{"question": {{"1": "..."}}, "dependency": {{"1": [0]}}}}}} '
                f"({type(error).__name__}: {error})"
            ) from None

    return [prompt for name in CLASSES for prompt in of_class(name)]


def _prompt(name: str, group: str, item: Mapping[str, Any]) -> QuestionPrompt:
    texts, dependency = (
        json.loads(value) if isinstance(value, str) else value
        for value in (item["question"], item["dependency"])
    )
    places = {int(number): place for place, number in enumerate(texts)}
    rests_on = {int(number): own for number, own in dependency.items()}
    questions = tuple(
        Question(text=str(text), parents=tuple(places[one] for one in rests_on.get(int(number), ()) if one))
        for number, text in texts.items()
    )
    if not questions:
        raise ValueError(f"{name}: no question")
    return QuestionPrompt(name=name, text="", group=group, questions=questions)


def name_of_file(path: Path) -> str:
    """Return "anime/000" of anime/MODEL/000.webp."""
    return f"{path.parts[0]}/{path.stem}"


def summary(images: Sequence[AnsweredImage]) -> list[Score]:
    """Return the mean over all prompts, then over those of each class."""

    def share(image: AnsweredImage) -> float:
        holds = image.holds
        counts = [
            holds[place] and all(holds[parent] for parent in question.parents)
            for place, question in enumerate(image.prompt.questions)
        ]
        return float(np.mean(counts))

    return overall("alignment", images, share)


ONEIG = Benchmark(
    name="oneig",
    title="OneIG-Bench, alignment",
    read=read,
    asked="{question} Please answer Yes or No.",
    summary=summary,
    prompts=695,
    images=4,
    grid=2,
    has_black_cells=True,
    name_of_file=name_of_file,
    name_of_row=oneig_place,
    notes=("the official judge is Qwen2.5-VL-7B, whose generated answer counts",),
)
