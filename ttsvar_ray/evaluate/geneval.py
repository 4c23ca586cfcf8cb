"""GenEval over images: which they are, detector, colors and rules together, and a result.

The numbers are the mean of each tag and the mean of those, with standard errors; the result says what they
compare with.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ttsvar_ray.dataset.export import exported_images
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest, installed_versions
from ttsvar_ray.errors import InputError, brief
from ttsvar_ray.evaluate.color_names import ColorNames
from ttsvar_ray.evaluate.comparison import grouped_mean
from ttsvar_ray.evaluate.detector import Detector
from ttsvar_ray.evaluate.geneval_prompts import TAGS, GenEvalPrompt, prompts_digest, read_prompt
from ttsvar_ray.evaluate.geneval_rules import GenEvalRules, Verdict, judge
from ttsvar_ray.evaluate.judging import AskedImage, JudgedImage
from ttsvar_ray.evaluate.mask2former_weights import OFFICIAL
from ttsvar_ray.types import UInt8Array


@dataclass(frozen=True, slots=True, kw_only=True)
class _TagScore:
    """One line of the table.

    Attributes:
        score: share of its images that are correct.
        standard_error: of that share, over prompts: images of one prompt are not independent. NaN for one.
    """

    images: int
    prompts: int
    score: float
    standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _GenEvalSummary:
    """The official summary, and how sure it is.

    Attributes:
        tags: in the official order, then any others.
        overall: mean of the tags' scores, whatever their sizes.
        standard_error: of that mean.
        correct_images: share of all images.
        correct_prompts: share of prompts with any correct image.
    """

    tags: Mapping[str, _TagScore]
    overall: float
    standard_error: float
    images: int
    prompts: int
    correct_images: float
    correct_prompts: float


def summarise(judged: Iterable[tuple[str, str, bool]]) -> _GenEvalSummary:
    """Return the summary of at least one verdict, each with its prompt's tag and key."""
    by_tag: dict[str, dict[str, list[bool]]] = {}
    for tag, prompt_key, correct in judged:
        by_tag.setdefault(tag, {}).setdefault(prompt_key, []).append(correct)
    assert by_tag
    order = [*TAGS, *sorted(set(by_tag) - set(TAGS))]
    tags = {tag: _score(by_tag[tag]) for tag in order if tag in by_tag}
    prompts = [verdicts for of_tag in by_tag.values() for verdicts in of_tag.values()]
    images = sum(map(len, prompts))
    return _GenEvalSummary(
        tags=tags,
        overall=sum(one.score for one in tags.values()) / len(tags),
        standard_error=math.sqrt(sum(one.standard_error**2 for one in tags.values())) / len(tags),
        images=images,
        prompts=len(prompts),
        correct_images=sum(map(sum, prompts)) / images,
        correct_prompts=sum(map(any, prompts)) / len(prompts),
    )


def _score(prompts: Mapping[str, list[bool]]) -> _TagScore:
    """Return the mean over images; its error is that of a ratio, since prompts may differ in their number."""
    texts = np.repeat(np.arange(len(prompts)), [len(verdicts) for verdicts in prompts.values()])
    found = grouped_mean(np.concatenate([*prompts.values()]).astype(float), texts=texts)
    return _TagScore(
        images=len(texts), prompts=len(prompts), score=found.mean, standard_error=found.standard_error
    )


WHOLE_PROMPTS, WHOLE_IMAGES = 553, 4
"""Prompts of the benchmark, and images that published scores have of each."""


class GenEvalJudge:
    """Judges one image after another.

    Args:
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
        images_of: how many images each has, by prompt key.
    """

    summary: _GenEvalSummary
    prompts: tuple[GenEvalPrompt, ...]
    images_of: Mapping[str, int] = field(repr=False)

    @classmethod
    def of(cls, judged: Sequence[JudgedImage]) -> GenEvalResult:
        """Return the result of at least one image."""
        prompts: dict[str, GenEvalPrompt] = {}
        images_of: Counter[str] = Counter()
        for one in judged:
            prompts.setdefault(one.prompt.key, one.prompt)
            images_of[one.prompt.key] += 1
        summary = summarise((one.prompt.tag, one.prompt.key, bool(one.found["correct"])) for one in judged)
        return cls(summary=summary, prompts=tuple(prompts.values()), images_of=images_of)

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


def _without_nan(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers as JSON has them: NaN is nothing there."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in numbers.items()
    }


def images_of_run(layout: OutputLayout, manifest: RunManifest, *, best_only: bool) -> Iterator[AskedImage]:
    """Yield a run's images, whose prompt file was GenEval's: its columns were carried along.

    Raises:
        OutputError: a part is damaged.
        InputError: a row has no metadata of GenEval.
    """
    for image in exported_images(layout, manifest.column_types, best_only=best_only):
        prompt = read_prompt(image.metadata, where=f"{layout.root}: row {image.metadata['row']}")
        yield AskedImage(key=image.key, encoded=image.encoded, prompt=prompt)


def images_of_folder(folder: Path) -> Iterator[AskedImage]:
    """Yield the images of `00000/metadata.jsonl` and `00000/samples/0000.png`, and so on.

    As in the official code, folders and files whose names are no numbers are passed over.

    Raises:
        OutputError: there is no such folder, or an image cannot be read.
        InputError: metadata are missing or are not GenEval's.
    """
    for place in prompt_folders(folder):
        path = place / "metadata.jsonl"
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: expected one line of GenEval's metadata ({brief(error)})") from error
        if not isinstance(metadata, dict):
            raise InputError(f"{path}: expected a JSON object, found {type(metadata).__name__}")
        prompt = read_prompt(metadata, where=str(path))
        samples = place / "samples"
        files = sorted(samples.iterdir()) if samples.is_dir() else []
        for file in files:
            if re.fullmatch(r"\d+\.png", file.name):
                key = file.relative_to(folder).as_posix()
                yield AskedImage(key=key, encoded=file.read_bytes(), prompt=prompt)


def prompt_folders(folder: Path) -> list[Path]:
    """Return the folders of the prompts, in order; none where the layout is another one."""
    if not folder.is_dir():
        return []
    return sorted(place for place in folder.iterdir() if place.is_dir() and place.name.isdigit())
