"""The summary of GenEval: means of means, and standard errors over prompts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ttsvar_ray.evaluate.geneval import summarise


def judged(tag: str, prompt: str, *correct: int) -> list[tuple[str, str, bool]]:
    return [(tag, prompt, bool(one)) for one in correct]


def test_tags_count_the_same_whatever_their_sizes() -> None:
    found = summarise(
        [*judged("position", "a", 1, 0, 0, 0), *judged("counting", "b", 1, 1), *judged("counting", "c", 0, 0)]
    )
    assert list(found.tags) == ["counting", "position"], "in the official order"
    assert found.tags["counting"].score == 0.5 and found.tags["position"].score == 0.25
    assert found.overall == 0.375
    assert found.correct_images == 3 / 8 and found.correct_prompts == 2 / 3
    assert (found.images, found.prompts) == (8, 3)


def test_the_standard_error_is_over_prompts() -> None:
    shares = [1, 0.75, 0.5, 0, 0.25]
    found = summarise(
        [
            one
            for place, share in enumerate(shares)
            for one in judged("colors", str(place), *[index < 4 * share for index in range(4)])
        ]
    )
    expected = np.std(shares, ddof=1) / math.sqrt(len(shares))
    assert found.tags["colors"].standard_error == pytest.approx(expected)
    assert found.standard_error == pytest.approx(expected)


def test_one_prompt_has_no_standard_error() -> None:
    found = summarise(judged("colors", "a", 1, 0))
    assert math.isnan(found.tags["colors"].standard_error) and math.isnan(found.standard_error)
