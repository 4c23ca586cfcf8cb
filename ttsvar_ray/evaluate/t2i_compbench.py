"""T2I-CompBench's attributes (arXiv 2307.06350): color, shape and texture by BLIP-VQA.

Read from the user's JSONL file, a line a prompt: `prompt`, `category` and `chunks`, the noun chunks that the
authors' code finds by spaCy's en_core_web_sm (at most eight, without "top", "the side", "the left" and "the
right"), which is no dependency here. Each chunk is asked with a "?"; an image's score is the product over its
chunks of P(yes) / (P(yes) + P(no)), a category's the mean over prompts, of which published scores have ten
images each. Its parts by a detector are `compbench_objects`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

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

MOST_CHUNKS = 8


def read(path: Path) -> list[QuestionPrompt]:
    """Return the prompts of a JSONL file; images are named by the prompt.

    Raises:
        InputError: a line that is another one.
    """

    def prompt(number: int, line: str) -> QuestionPrompt:
        try:
            told = json.loads(line)
            chunks = [str(chunk) for chunk in told["chunks"]]
            if not 0 < len(chunks) <= MOST_CHUNKS:
                raise ValueError(f"{len(chunks)} chunks")
            questions = tuple(Question(text=chunk) for chunk in chunks)
            text = str(told["prompt"])
            return QuestionPrompt(name=text, text=text, group=str(told["category"]), questions=questions)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: line {number}: expected prompt, category and one to {MOST_CHUNKS} chunks "
                f"({type(error).__name__}: {error})"
            ) from None

    return [prompt(number, line) for number, line in enumerate(read_text(path).splitlines(), start=1)]


def name_of_file(path: Path) -> str:
    """Return the prompt of "a red book_000012.png"."""
    return re.sub(r"_\d+$", "", path.stem)


def summary(images: Sequence[AnsweredImage]) -> list[Score]:
    """Return the mean over all prompts, then over those of each category."""

    def product(image: AnsweredImage) -> float:
        return math.prod(yes / (yes + no) for yes, no in image.probabilities)

    return overall("BLIP-VQA", images, product)


T2I_COMPBENCH = Benchmark(
    name="t2i-compbench",
    title="T2I-CompBench, attributes",
    read=read,
    asked="{question}?",
    summary=summary,
    prompts=900,
    images=10,
    name_of_file=name_of_file,
    notes=("the official judge is BLIP-VQA (blip-vqa-capfilt-large)",),
)
