"""T2I-CompBench (arXiv 2307.06350): color, shape and texture by BLIP-VQA, non-spatial relations by CLIP.

Attributes are read from the user's JSONL file, a line a prompt: `prompt`, `category` and `chunks`, the noun
chunks that the authors' code finds by spaCy's en_core_web_sm (at most eight, without "top", "the side", "the
left" and "the right"), which is no dependency here. Each chunk is asked with a "?"; an image's score is the
product over its chunks of P(yes) / (P(yes) + P(no)), a category's the mean over prompts, of which published
scores have ten images each.

Non-spatial relations are a line of text a prompt (`non_spatial_val.txt`), scored by CLIP's cosine. The
parts by a detector are `compbench_objects`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttsvar_ray.evaluate.judging import AskedImage
from ttsvar_ray.evaluate.questions import (
    AnsweredImage,
    Benchmark,
    Question,
    QuestionPrompt,
    Score,
    overall,
    read_lines,
    read_text,
)
from ttsvar_ray.models.weight_source import fingerprint_path
from ttsvar_ray.rewards.registry import build_reward

MOST_CHUNKS = 8


def read(path: Path) -> list[QuestionPrompt]:
    """Return the prompts of a JSONL file; images are named by the prompt.

    Raises:
        InputError: a line that is another one.
    """
    return read_lines(path, _prompt, expected=f"prompt, category and one to {MOST_CHUNKS} chunks")


def _prompt(number: int, line: str) -> QuestionPrompt:
    told = json.loads(line)
    chunks = [str(chunk) for chunk in told["chunks"]]
    if not 0 < len(chunks) <= MOST_CHUNKS:
        raise ValueError(f"{len(chunks)} chunks")
    text = str(told["prompt"])
    questions = tuple(Question(text=chunk) for chunk in chunks)
    return QuestionPrompt(name=text, text=text, group=str(told["category"]), questions=questions)


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


class ClipJudge:
    """Scores one image after another by CLIP's cosine with its prompt, as the reward `clip-score` does.

    Args:
        folder: of CLIP as transformers saves it, with `vocab.json` and `merges.txt`.

    Raises:
        CheckpointError: weights that cannot be used.
    """

    def __init__(self, folder: Path, *, device: str) -> None:
        self._clip, self._folder = build_reward("clip-score", path=folder, device=device), folder

    def __call__(self, image: AskedImage) -> dict[str, Any]:
        """Return what the judges of questions do: a score in place of each probability."""
        (score,) = self._clip.score(image.pixels()[None], [image.prompt.text])
        return {"prompt": image.prompt.name, "probabilities": [[float(score)]]}

    def basis(self) -> dict[str, Any]:
        """Return what scores rest on beside the image and the prompt."""
        return {
            "benchmark": T2I_COMPBENCH_CLIP.title,
            "judge": {"label": self._folder.name, "weights": fingerprint_path(self._folder)},
            "dtype": "float32",
        }


def _read_texts(path: Path) -> list[QuestionPrompt]:
    texts = (line.strip() for line in read_text(path).splitlines())
    return [
        QuestionPrompt(name=text, text=text, group="non-spatial", questions=(Question(text=text),))
        for text in texts
        if text
    ]


T2I_COMPBENCH_CLIP = Benchmark(
    name="t2i-compbench-clip",
    title="T2I-CompBench, non-spatial",
    read=_read_texts,
    asked="",
    summary=lambda images: overall("CLIP", images, lambda image: image.probabilities[0][0]),
    prompts=300,
    images=10,
    name_of_file=name_of_file,
    notes=("the official judge is CLIP ViT-B/32",),
)
