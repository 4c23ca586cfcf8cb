"""Compare GenEval's rules and its detector with recordings of the official code and of mmdet.

The rules' recording (`ttsvar-ray verify geneval FILE`) is one JSON object: `class_names` and `colors` in
order; `defaults`, the official options; `metadata` by prompt index; `cases` with `detections` (class, box,
score, and the color that the classifier would name) and what came of them: `correct`, `kept` and
`color_calls`; `variants`, each with its options and `correct` for the same cases; `geometry`, pairs of boxes
with `relations` and `iou`. The last two may be left out.

The detector's folder `mask2former` holds `mmdet_mask2former.pth`, a checkpoint of any size, and `ref.pt`: the
padded input `x`, the backbone's `feats`, logits `cls` and `mask`, `mp`, the mask logits at the input's size,
and the objects that mmdet made of one image: `labels`, `scores`, `bboxes` and `masks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttsvar_ray.errors import CheckpointError, reading_weights
from ttsvar_ray.evaluate.detector import Detector, DetectorPixels, find_objects, to_size
from ttsvar_ray.evaluate.geneval import summarise
from ttsvar_ray.evaluate.geneval_prompts import CLASS_NAMES, COLORS, RELATIONS, read_prompt
from ttsvar_ray.evaluate.geneval_rules import Detected, GenEvalRules, Verdict, judge, overlap, relations
from ttsvar_ray.evaluate.mask2former_weights import OTHER_MMDET, load_mmdet
from ttsvar_ray.recorded import EXACT, Case, read_json, reading, required

_OPTIONS = {
    "THRESHOLD": "threshold",
    "COUNTING_THRESHOLD": "counting_threshold",
    "MAX_OBJECTS": "max_objects",
    "NMS_THRESHOLD": "max_overlap",
    "POSITION_THRESHOLD": "position_threshold",
}
IOU = 1e-6
"""Recorded in float64, computed in float32."""
_ROUNDING = 1e-12


def verify_geneval(file: Path) -> list[Case]:
    """Compare everything that was recorded: 1 where a case differs, 0 where not, so the tolerance is exact.

    Returns:
        One case for the official options, one for each variant, one for the geometry.

    Raises:
        CheckpointError: the file is missing, damaged, or no such recording.
    """
    content = read_json(file)
    with reading_weights(file, kind="a recording of GenEval"):
        return _compare(content, str(file))


def _compare(content: Mapping[str, Any], where: str) -> list[Case]:
    cases: Any = required(content, "cases", where)
    metadata: Any = required(content, "metadata", where)
    official = Case(name="official options")
    official.notes.append(f"{len(cases)} images; 0 where one agrees and 1 where not")
    official.between(
        "names", *_same([CLASS_NAMES, COLORS], [content["class_names"], content["colors"]]), EXACT
    )
    ran = [_run(one, metadata, _rules(content["defaults"])) for one in cases]
    verdicts = [verdict for verdict, _ in ran]
    expected = [one["correct"] for one in cases]
    official.between("correct", [one.correct for one in verdicts], expected, EXACT)
    official.between("kept", *_same(map(_kept, verdicts), [one["kept"] for one in cases]), EXACT)
    official.between(
        "color calls",
        *_same([calls for _, calls in ran], [list(map(list, one["color_calls"])) for one in cases]),
        EXACT,
    )
    official.between(
        "overall", _overall(cases, metadata, verdicts), _mean_of_means(cases, metadata), _ROUNDING
    )
    found = [official]
    for variant in content.get("variants", ()):
        case = Case(name=str(variant["option"]))
        rules = _rules({**content["defaults"], **variant["globals"]})
        got = [_run(one, metadata, rules)[0].correct for one in cases]
        case.between("correct", got, variant["correct"], EXACT)
        found.append(case)
    if pairs := content.get("geometry"):
        found.append(_geometry(pairs, content["defaults"]["POSITION_THRESHOLD"]))
    return found


def _run(
    recorded: Mapping[str, Any], metadata: Mapping[str, Any], rules: GenEvalRules
) -> tuple[Verdict, list[list[Any]]]:
    """Return the verdict on one recorded case, and the colors that were asked for."""
    index = str(recorded["prompt_index"])
    found: dict[str, list[Detected]] = {}
    for one in recorded["detections"]:
        box = np.asarray(one["box"], np.float32)
        detected = Detected(box=box, score=np.float32(one["score"]), mask=one["color"])
        found.setdefault(one["class"], []).append(detected)
    calls: list[list[Any]] = []
    return judge(
        read_prompt(metadata[index], where=f"metadata {index}"), found, _recalling(calls), rules
    ), calls


def _recalling(calls: list[list[Any]]) -> Callable[[Sequence[Detected], str], list[str]]:
    """Return a classifier that names the recorded colors, and notes what it was asked."""

    def colors_of(objects: Sequence[Detected], class_name: str) -> list[str]:
        answers = [str(one.mask) for one in objects]
        calls.append([class_name, answers])
        return answers

    return colors_of


def _rules(options: Mapping[str, Any]) -> GenEvalRules:
    return GenEvalRules(**{_OPTIONS[name]: value for name, value in options.items()})


def _same(got: Any, expected: Any) -> tuple[list[int], list[int]]:
    """Return numbers that are equal where things are, one by one."""
    pairs = list(zip(got, expected, strict=True))
    return [int(_plain(mine) != _plain(theirs)) for mine, theirs in pairs], [0] * len(pairs)


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _kept(verdict: Verdict) -> dict[str, list[list[float]]]:
    return {
        name: [[*map(float, one.box), float(one.score)] for one in objects]
        for name, objects in verdict.kept.items()
    }


def _overall(cases: Sequence[Any], metadata: Mapping[str, Any], verdicts: Sequence[Verdict]) -> float:
    prompts = (str(one["prompt_index"]) for one in cases)
    pairs = zip(prompts, verdicts, strict=True)
    return summarise((metadata[prompt]["tag"], prompt, one.correct) for prompt, one in pairs).overall


def _mean_of_means(cases: Sequence[Any], metadata: Mapping[str, Any]) -> float:
    """Return what the recording says the overall score is."""
    by_tag: dict[str, list[bool]] = {}
    for one in cases:
        by_tag.setdefault(metadata[str(one["prompt_index"])]["tag"], []).append(one["correct"])
    return float(np.mean([np.mean(correct) for correct in by_tag.values()]))


def _geometry(pairs: Sequence[Any], threshold: float) -> Case:
    case = Case(name="geometry")
    boxes = [tuple(np.asarray(one[name], np.float32) for name in "ab") for one in pairs]
    iou = [overlap(first, second) for first, second in boxes]
    case.between("iou", iou, [one["iou"] for one in pairs], IOU)
    got = [relations(first, second, threshold) for first, second in boxes]
    case.between(
        "relations",
        [[name in one for name in RELATIONS] for one in got],
        [[name in one["relations"] for name in RELATIONS] for one in pairs],
        EXACT,
    )
    return case


FOLDER = "mask2former"
CHECKPOINT = "mmdet_mask2former.pth"

FEATURES, CLASSES, MASKS, SCORES = 5e-5, 2e-5, 5e-4, 2e-6
"""Largest absolute differences. Measured at full size: 3.5e-6 on classes, 1.4e-4 on masks of standard
deviation 13."""


def verify_mask2former(folder: Path, *, device: str = "cpu") -> Case:
    """Compare with everything that `folder` / mask2former recorded.

    Raises:
        CheckpointError: a file is missing or damaged, or they do not belong together.
    """
    place = folder / FOLDER
    path = place / "ref.pt"
    with reading(path):
        recorded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(recorded).__name__}")
    with reading(place / CHECKPOINT):
        network = load_mmdet(place / CHECKPOINT)
    case = Case(name=FOLDER, recorded=recorded)
    detector = Detector(network, label=OTHER_MMDET, digest="", device=device)
    with reading(path):
        padded, expected_masks = (required(recorded, name, str(path)) for name in ("x", "masks"))
        if not isinstance(padded, Tensor) or not isinstance(expected_masks, Tensor):
            raise CheckpointError(f"{path}: x, masks: expected tensors")
        size, most = tuple(expected_masks.shape[1:]), len(expected_masks)
        pixels = _pixels(padded, size)
        with torch.inference_mode():
            encoder = detector.network.model.pixel_level_module.encoder
            features = encoder(pixels.tensor.to(detector.device)).feature_maps
        for level, (got, expected) in enumerate(zip(features, recorded.get("feats", ()), strict=False)):
            case.between(f"feats {level}", got, expected, FEATURES)
        classes, masks = detector.logits(pixels.tensor)
        case.compare("cls", classes[None], CLASSES)
        case.compare("mask", masks[None], MASKS)
        case.compare("mp", to_size(masks, tuple(pixels.tensor.shape[2:]))[None], MASKS)
        found = find_objects(classes, masks, pixels, size, most=most)
        case.compare("labels", found.labels, EXACT)
        case.compare("scores", found.scores, SCORES)
        case.compare("bboxes", found.boxes, EXACT)
        case.compare("masks", found.masks, EXACT)
    case.note_the_rest(inputs=r"^(x|feats|mc)$")
    return case


def _pixels(padded: Tensor, image_size: tuple[int, ...]) -> DetectorPixels:
    """Return a recorded input; image in it is the most that keeps the aspect ratio exactly."""
    common = math.gcd(*image_size)
    height, width = (side // common for side in image_size)
    times = min(padded.shape[2] // height, padded.shape[3] // width)
    return DetectorPixels(tensor=padded, height=times * height, width=times * width)
