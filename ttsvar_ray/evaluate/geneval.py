"""GenEval over images: detector, colors and rules together, and a result that says what it compares with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ttsvar_ray.dataset.manifest import installed_versions
from ttsvar_ray.evaluate.color_names import ColorNames
from ttsvar_ray.evaluate.detector import Detector
from ttsvar_ray.evaluate.geneval_prompts import TAGS, GenEvalPrompt, prompts_digest
from ttsvar_ray.evaluate.geneval_rules import GenEvalRules, Verdict, judge
from ttsvar_ray.evaluate.geneval_summary import GenEvalSummary, Judged, summarise
from ttsvar_ray.evaluate.judging import AskedImage, JudgedImage
from ttsvar_ray.evaluate.mask2former_weights import OFFICIAL
from ttsvar_ray.types import UInt8Array

WHOLE_PROMPTS, WHOLE_IMAGES = 553, 4
"""Prompts of the benchmark, and images that published scores have of each."""


class GenEvalJudge:
    """Judges one image after another.

    Args:
        detector: finds objects.
        colors: names their colors.
        rules: the official ones unless said otherwise.
    """

    def __init__(self, detector: Detector, colors: ColorNames, rules: GenEvalRules | None = None) -> None:
        self.detector, self.colors = detector, colors
        self.rules = rules or GenEvalRules()

    @classmethod
    def load(cls, detector: Path, clip: Path, *, device: str) -> GenEvalJudge:
        """Load the official rules with the networks of two folders.

        Raises:
            CheckpointError: weights that cannot be used.
        """
        return cls(Detector.load(detector, device=device), ColorNames.load(clip, device=device))

    def __call__(self, image: AskedImage) -> dict[str, Any]:
        """Return what the file of verdicts holds of an image."""
        prompt: GenEvalPrompt = image.prompt
        verdict = self.judge(image.pixels(), prompt)
        return {
            "correct": verdict.correct,
            "tag": prompt.tag,
            "prompt": prompt.text,
            "reasons": list(verdict.reasons),
            "objects": {name: len(objects) for name, objects in verdict.kept.items()},
        }

    def judge(self, image: UInt8Array, prompt: GenEvalPrompt) -> Verdict:
        """Return the verdict on a uint8 RGB image [height, width, 3]."""
        least = min(self.rules.threshold, self.rules.counting_threshold)
        found = self.detector.detect(image, above=least)
        return judge(prompt, found, lambda objects, name: self.colors.name(image, objects, name), self.rules)

    def basis(self) -> dict[str, Any]:
        """Return what verdicts rest on beside the image."""
        return {
            "benchmark": "GenEval",
            "detector": {"label": self.detector.label, "sha256": self.detector.digest},
            "colors": {"label": self.colors.label, "sha256": self.colors.digest},
            "rules": asdict(self.rules),
        }


@dataclass(slots=True, kw_only=True)
class GenEvalResult:
    """A summary, and what of the images decides whether it can be compared.

    Attributes:
        summary: of all images.
        prompts: the distinct ones.
        images_of: how many images each has, by prompt key.
    """

    summary: GenEvalSummary
    prompts: tuple[GenEvalPrompt, ...]
    images_of: Mapping[str, int] = field(repr=False)

    def notes(self, detector_label: str) -> list[str]:
        """Return why the score is not one of the published kind; nothing where it is."""
        found = []
        if detector_label != OFFICIAL:
            found.append(detector_label)
        if len(self.prompts) != WHOLE_PROMPTS:
            found.append(f"{len(self.prompts)} of the benchmark's {WHOLE_PROMPTS} prompts")
        if missing := [tag for tag in TAGS if tag not in self.summary.tags]:
            found.append(f"no prompt of {', '.join(missing)}: the overall score is the mean of the others")
        fewest, most = min(self.images_of.values()), max(self.images_of.values())
        if (fewest, most) != (WHOLE_IMAGES, WHOLE_IMAGES):
            number = str(most) if fewest == most else f"{fewest} to {most}"
            found.append(f"{number} images a prompt, where published scores have {WHOLE_IMAGES}")
        return found

    def to_json(self, judged_by: GenEvalJudge, *, source: Mapping[str, Any], device: str) -> dict[str, Any]:
        """Return everything to keep of an evaluation.

        Args:
            judged_by: whose verdicts they are.
            source: which images, see `told_of_run`.
            device: where the networks ran, in float32.
        """
        summary = asdict(self.summary)
        tags = {name: _without_nan(score) for name, score in summary.pop("tags").items()}
        return {
            **judged_by.basis(),
            **_without_nan(summary),
            "tags": tags,
            "notes": self.notes(judged_by.detector.label),
            "prompts_digest": prompts_digest(self.prompts),
            "source": dict(source),
            "device": device,
            "dtype": "float32",
            "versions": installed_versions(),
        }


def geneval_result(judged: Sequence[JudgedImage]) -> GenEvalResult:
    """Return the result of at least one image."""
    prompts: dict[str, GenEvalPrompt] = {}
    images_of: Counter[str] = Counter()
    for one in judged:
        prompts.setdefault(one.prompt.key, one.prompt)
        images_of[one.prompt.key] += 1
    summary = summarise(
        Judged(prompt_key=one.prompt.key, tag=one.prompt.tag, correct=bool(one.found["correct"]))
        for one in judged
    )
    return GenEvalResult(summary=summary, prompts=tuple(prompts.values()), images_of=images_of)


def _without_nan(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers as JSON has them: NaN is nothing there."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in numbers.items()
    }
