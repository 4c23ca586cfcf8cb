"""GenEval's numbers out of verdicts: the mean of each tag, the mean of those, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ttsvar_ray.evaluate.geneval_prompts import TAGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the summary needs of one image.

    Attributes:
        prompt_key: that images of one prompt share.
        tag: of the prompt.
        correct: the verdict.
    """

    prompt_key: str
    tag: str
    correct: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TagScore:
    """One line of the table.

    Attributes:
        images, prompts: how many.
        score: share of its images that are correct.
        standard_error: of that share, over prompts: images of one prompt are not independent. NaN for one.
    """

    images: int
    prompts: int
    score: float
    standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenEvalSummary:
    """The official summary, and how sure it is.

    Attributes:
        tags: in the official order, then any others.
        overall: mean of the tags' scores, whatever their sizes.
        standard_error: of that mean.
        images: number of images.
        prompts: number of distinct prompts.
        correct_images: share of all images.
        correct_prompts: share of prompts with any correct image.
    """

    tags: Mapping[str, TagScore]
    overall: float
    standard_error: float
    images: int
    prompts: int
    correct_images: float
    correct_prompts: float


def summarise(judged: Iterable[Judged]) -> GenEvalSummary:
    """Return the summary of at least one verdict."""
    by_tag: dict[str, dict[str, list[bool]]] = {}
    for one in judged:
        by_tag.setdefault(one.tag, {}).setdefault(one.prompt_key, []).append(one.correct)
    assert by_tag
    order = [*TAGS, *sorted(set(by_tag) - set(TAGS))]
    tags = {tag: _score(by_tag[tag]) for tag in order if tag in by_tag}
    prompts = [verdicts for of_tag in by_tag.values() for verdicts in of_tag.values()]
    images = sum(map(len, prompts))
    return GenEvalSummary(
        tags=tags,
        overall=sum(one.score for one in tags.values()) / len(tags),
        standard_error=math.sqrt(sum(one.standard_error**2 for one in tags.values())) / len(tags),
        images=images,
        prompts=len(prompts),
        correct_images=sum(map(sum, prompts)) / images,
        correct_prompts=sum(map(any, prompts)) / len(prompts),
    )


def _score(prompts: Mapping[str, list[bool]]) -> TagScore:
    """Return the mean over images; its error is that of a ratio, since prompts may differ in their number."""
    sizes = np.array([len(verdicts) for verdicts in prompts.values()], float)
    right = np.array([sum(verdicts) for verdicts in prompts.values()], float)
    score, number = right.sum() / sizes.sum(), len(sizes)
    spread = np.square(right - score * sizes).sum() * number / max(number - 1, 1)
    error = math.sqrt(spread) / sizes.sum() if number > 1 else math.nan
    return TagScore(images=int(sizes.sum()), prompts=number, score=float(score), standard_error=float(error))
