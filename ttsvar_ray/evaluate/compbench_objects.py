"""T2I-CompBench's spatial relations and counts (arXiv 2307.06350) by GenEval's detector.

The rules are the authors'; the detector is not: theirs is UniDet, which knows more objects and scores them in
another way, so **no score here is comparable with a published one**. Prompts are read from the authors'
`spatial_val.txt` or `numeracy_val.txt`, beside which `new_objects.txt` names the objects that are counted.
Prompts that name an object which the detector does not know are not asked, instead of scored 0.

3d_spatial is not offered: it compares the depths of two boxes, which nothing measures here. Nor is complex,
the mean of BLIP-VQA, CLIP and relations: none of its prompts with a relation has two objects of the 80.

Source: the authors' 2D_spatial_eval.py and numeracy_eval.py.
Differs: nouns are found by the form of these prompts, not by spaCy; television, sofa and phone are the
    detector's tv, couch and cell phone, and no other class whose name holds a word counts for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ttsvar_ray.errors import InputError
from ttsvar_ray.evaluate.detector import Detector
from ttsvar_ray.evaluate.geneval_prompts import CLASS_NAMES
from ttsvar_ray.evaluate.geneval_rules import Detected
from ttsvar_ray.evaluate.judging import AskedImage
from ttsvar_ray.evaluate.questions import Benchmark, Question, QuestionPrompt, overall, read_text
from ttsvar_ray.evaluate.t2i_compbench import name_of_file
from ttsvar_ray.types import Float32Array

NOT_COMPARABLE = "not comparable with UniDet"
THRESHOLD = 0.5
"""Objects count above this score, as in the authors' code."""
NEAR = 150.0
"""Pixels between two centres, of an image of `_SHORTER` x `_LONGER` at most."""
_SHORTER, _LONGER = 479, 480
_OVERLAP, _SAME = 0.1, 0.9

_BESIDE = ("on side of", "next to", "near")
_SIDES = {"on the left of": (0, -1), "on the right of": (0, 1), "on the top of": (1, -1)}
_SIDES["on the bottom of"] = (1, 1)
"""Axis and sign of the first object's centre as seen from the second's."""
_RELATION = re.compile(rf"an? (.+) ({'|'.join([*_BESIDE, *_SIDES])}) an? ([^.]+)\.?")
_DEPTH = re.compile(r"\b(in front of|behind|hidden)\b")
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
_NUMBERS = {"a": 1, "an": 1} | {word: number for number, word in enumerate(_WORDS, start=1)}
_CLASSES = {name: name for name in CLASS_NAMES} | dict.fromkeys(("girl", "boy", "man", "woman"), "person")
_CLASSES |= {"ship": "boat", "television": "tv", "sofa": "couch", "phone": "cell phone"}

Found = Mapping[str, Sequence[Detected]]
"""Objects by class, surest first, in pixels of the authors' size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation(Question):
    """Where one object is as seen from another.

    Attributes:
        objects: the one and the other, as the prompt calls them.
        relation: the prompt's words for it.
    """

    objects: tuple[str, ...]
    relation: str

    def score(self, found: Found) -> float:
        """Return a quarter of each one's score and half of the relation's; 0 for less than a half."""
        pair = [found.get(_CLASSES[name], ())[:1] for name in self.objects]
        score = sum(0.25 * float(one.score) for own in pair for one in own)
        if all(pair):
            score += 0.5 * _relation(self.relation, pair[0][0].box, pair[1][0].box)
        return score if score >= 0.5 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Count(Question):
    """How many there are of an object.

    Attributes:
        objects: what the prompt calls one of them, alone.
        number: of them.
    """

    objects: tuple[str, ...]
    number: int

    def score(self, found: Found) -> float:
        """Return a half where there is one, and another where there are as many as were asked."""
        kept: list[Detected] = []
        for one in found.get(_CLASSES[self.objects[0]], ()):
            if not any(_are_same(one.box, surer.box) for surer in kept):
                kept.append(one)
        return 0.5 * bool(kept) + 0.5 * (len(kept) == self.number)


def _relation(words: str, first: Float32Array, second: Float32Array) -> float:
    """Return from 0 to 1 how well a relation holds between boxes [4] (left, top, right, bottom).

    Near: within `NEAR` pixels on one axis, or else its share of the larger distance. A side: the centres lie
    further apart on its axis than on the other, in its direction; boxes that overlap by an IoU of 0.1 or more
    get the share 0.1 / IoU of it.
    """
    offset = (first[:2] + first[2:] - second[:2] - second[2:]) / 2
    far = np.abs(offset)
    if words in _BESIDE:
        return 1.0 if far.min() < NEAR else float(NEAR / far.max())
    axis, sign = _SIDES[words]
    if offset[axis] * sign <= 0 or far[axis] <= far[1 - axis]:
        return 0.0
    shared, *areas = _areas(first, second, 0.0)
    iou = shared / (sum(areas) - shared)
    return 1.0 if iou < _OVERLAP else float(_OVERLAP / iou)


def _are_same(first: Float32Array, second: Float32Array) -> bool:
    """Return whether boxes share more than 0.9 of the smaller one, each taken to end one pixel later."""
    shared, *areas = _areas(first, second, 1.0)
    return shared > _SAME * min(areas)


def _areas(first: Float32Array, second: Float32Array, more: float) -> tuple[float, float, float]:
    """Return the area that boxes share and their own, every side longer by `more`."""
    both = np.concatenate([np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])])
    sides = (np.maximum(box[2:].astype(float) - box[:2] + more, 0.0) for box in (both, first, second))
    shared, one, other = (float(np.prod(own)) for own in sides)
    return shared, one, other


def _counting(found: Found, height: int, width: int) -> dict[str, list[Detected]]:
    """Return the objects of an image that count, surest first, in pixels of the authors' size."""
    scale = np.float32(min(_SHORTER / min(height, width), _LONGER / max(height, width)))
    return {
        name: [
            replace(one, box=one.box * scale)
            for one in sorted(objects, key=lambda one: -one.score)
            if one.score > THRESHOLD
        ]
        for name, objects in found.items()
    }


class ObjectJudge:
    """Scores one image after another by what a detector finds in it."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    @classmethod
    def load(cls, folder: Path, *, device: str) -> ObjectJudge:
        """Load the detector of a folder.

        Raises:
            CheckpointError: weights that cannot be used.
        """
        return cls(Detector.load(folder, device=device))

    def __call__(self, image: AskedImage) -> dict[str, Any]:
        """Return what the file of verdicts holds of an image: a score in place of each probability."""
        prompt: QuestionPrompt = image.prompt
        pixels = image.pixels()
        found = _counting(self._detector.detect(pixels, above=THRESHOLD), *pixels.shape[:2])
        asked = [one for one in prompt.questions if isinstance(one, Relation | Count)]
        return {"prompt": prompt.name, "probabilities": [[one.score(found)] for one in asked]}

    def basis(self) -> dict[str, Any]:
        """Return what scores rest on beside the image and the prompt."""
        return {
            "benchmark": T2I_COMPBENCH_OBJECTS.title,
            "judge": {
                "label": f"GenEval's detector ({self._detector.label})",
                "weights": self._detector.digest,
            },
            "threshold": THRESHOLD,
            "dtype": "float32",
        }


def _read(path: Path) -> list[QuestionPrompt]:
    """Return the prompts all of whose objects the detector knows; images are named by the prompt."""
    texts = {
        number: text for number, text in enumerate(read_text(path).splitlines(), start=1) if text.strip()
    }
    names: dict[str, str] | None = None
    prompts = []
    for number, text in ((number, text.strip()) for number, text in texts.items()):
        if depth := _DEPTH.search(text):
            raise InputError(
                f"{path}: line {number}: {depth[1]!r} asks for depth, which nothing measures here"
            )
        asked: Sequence[Relation | Count]
        if told := _RELATION.fullmatch(text):
            asked = [Relation(text=told[0], objects=(told[1], told[3]), relation=told[2])]
        else:
            names = names or _names(path.with_name("new_objects.txt"))
            asked = _counts(text, names)
        if not asked:
            raise InputError(
                f"{path}: line {number}: expected a relation of two objects, or numbers of objects, "
                f"found {text!r}"
            )
        group = f"{'spatial' if told else 'numeracy'}, {NOT_COMPARABLE}"
        if all(name in _CLASSES for one in asked for name in one.objects):
            prompts.append(QuestionPrompt(name=text, text=text, group=group, questions=tuple(asked)))
    return prompts


def _counts(text: str, names: Mapping[str, str]) -> list[Count]:
    """Return what is counted in a prompt: objects right behind a number."""
    words = re.findall(r"\w+|[^\w\s]", text)
    counts = []
    for place, word in enumerate(words):
        behind = (" ".join(words[place + 1 : place + size]) for size in (3, 2))
        name = next((names[one] for one in behind if one in names), None)
        if word in _NUMBERS and name is not None:
            counts.append(Count(text=f"{word} {name}", objects=(name,), number=_NUMBERS[word]))
    return counts


def _names(path: Path) -> dict[str, str]:
    """Return the singular of every singular and plural of lines like "bottle - bottles"."""
    pairs = [line.lower().split(" - ") for line in read_text(path).splitlines() if line.strip()]
    if wrong := next((pair for pair in pairs if len(pair) != 2), None):
        raise InputError(f'{path}: expected lines like "bottle - bottles", found {wrong[0]!r}')
    return {form.strip(): pair[0].strip() for pair in pairs for form in pair}


T2I_COMPBENCH_OBJECTS = Benchmark(
    name="t2i-compbench-objects",
    title=f"T2I-CompBench, spatial and numeracy, {NOT_COMPARABLE}",
    read=_read,
    asked="",
    # Of each category; an image's score is the mean of its questions'.
    summary=lambda images: overall("", images, lambda image: float(np.mean(image.probabilities)))[1:],
    prompts=300,
    images=10,
    name_of_file=name_of_file,
    notes=(f"{NOT_COMPARABLE}: another detector, and only prompts of its {len(CLASS_NAMES)} classes",),
)
