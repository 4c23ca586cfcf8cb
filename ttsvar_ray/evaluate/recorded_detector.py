"""Compare GenEval's detector with recorded outputs of mmdet.

`mask2former` holds `mmdet_mask2former.pth`, a checkpoint of any size, and `ref.pt`: the padded input `x`, the
backbone's `feats`, logits `cls` and `mask`, `mp`, the mask logits at the input's size, and the objects that
mmdet made of one image: `labels`, `scores`, `bboxes` and `masks`.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.evaluate.detector import Detector, find_objects, to_size
from ttsvar_ray.evaluate.detector_pixels import DetectorPixels
from ttsvar_ray.evaluate.mask2former_weights import OTHER_MMDET, load_mmdet
from ttsvar_ray.recorded import EXACT, Case, reading, required

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
