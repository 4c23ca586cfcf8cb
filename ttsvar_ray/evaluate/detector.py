"""GenEval's detector: Mask2Former over one image, and mmdet's way from its logits to objects.

One image at a time: the padded size belongs to the image, and so no image depends on others. Its pixels are
made as mmdet makes them: by OpenCV's bilinear resizing, without OpenCV.

Shape legend: Q queries, N objects, K classes, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation

from ttsvar_ray.evaluate.geneval_prompts import CLASS_NAMES
from ttsvar_ray.evaluate.geneval_rules import Detected
from ttsvar_ray.evaluate.mask2former_weights import load_detector_weights
from ttsvar_ray.types import Float32Array, Int64Array, UInt8Array
from ttsvar_ray.vision.batches import settle

LONGER, SHORTER = 1333, 800
"""An image is scaled, up or down, until one of its sides has this many pixels and none has more."""
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
STEP = 32
"""Pixels are padded, right and below, to a multiple of this."""

_BITS = 11
_ONE = 1 << _BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorPixels:
    """One image as a detector reads it.

    Attributes:
        tensor: float32 [1, 3, padded height, padded width].
        height, width: of what is image in it.
    """

    tensor: Tensor
    height: int
    width: int


def detector_pixels(image: UInt8Array, *, longer: int = LONGER, shorter: int = SHORTER) -> DetectorPixels:
    """Return the pixels of a uint8 RGB image [height, width, 3]."""
    scale = min(longer / max(image.shape[:2]), shorter / min(image.shape[:2]))
    height, width = (int(side * scale + 0.5) for side in image.shape[:2])
    levels = resize_bilinear(image, height, width)
    mean, factor = np.array(MEAN, np.float32), (1 / np.array(STD)).astype(np.float32)
    normalised = (levels.astype(np.float32) - mean) * factor
    # After normalising: what is padded is the mean colour.
    padded = np.zeros((3, height + -height % STEP, width + -width % STEP), np.float32)
    padded[:, :height, :width] = normalised.transpose(2, 0, 1)
    return DetectorPixels(tensor=torch.from_numpy(padded)[None], height=height, width=width)


def resize_bilinear(image: UInt8Array, height: int, width: int) -> UInt8Array:
    """Return uint8 [height, width, channels] as `cv2.resize` makes it with INTER_LINEAR: no antialiasing.

    Weights have 11 bits, and the two passes round as OpenCV's vector code does.
    """
    left, right = _weights(image.shape[1], width, clips=True)
    above, below = _weights(image.shape[0], height, clips=False)
    levels = image.astype(np.int32)
    rows = levels[:, left.place] * left.weight[:, None] + levels[:, right.place] * right.weight[:, None]
    # Four bits are dropped before the second pass, so that products fit 32 bits there.
    rows >>= 4
    first = (rows[above.place] * above.weight[:, None, None]) >> 16
    first += (rows[below.place] * below.weight[:, None, None]) >> 16
    resized: UInt8Array = np.clip((first + 2) >> 2, 0, 255).astype(np.uint8)
    return resized


@dataclass(frozen=True, slots=True)
class _Taps:
    """One of the two neighbours along an axis: int64 places and int32 weights of each new position."""

    place: Int64Array
    weight: np.ndarray


def _weights(old: int, new: int, *, clips: bool) -> tuple[_Taps, _Taps]:
    """Return the neighbours before and after each new position.

    Args:
        old, new: pixels of the axis.
        clips: beyond the border the border pixel counts whole; else it counts twice, by both weights, which
            rounds differently.
    """
    scale = 1.0 / (new / old)
    position: Float32Array = ((np.arange(new) + 0.5) * scale - 0.5).astype(np.float32)
    place = np.floor(position).astype(np.int64)
    part = position - place.astype(np.float32)
    if clips:
        part[(place < 0) | (place >= old - 1)] = 0
    after = np.rint(part * np.float32(_ONE)).astype(np.int32)
    before = np.rint((1 - part) * np.float32(_ONE)).astype(np.int32)
    return (_Taps(np.clip(place, 0, old - 1), before), _Taps(np.clip(place + 1, 0, old - 1), after))


MOST_OBJECTS = 100
"""Pairs of a query and a class that may become objects: one query may be several."""
_AT_A_TIME = 8
"""Masks that are brought to the image's size together: 32 MiB at 1024 x 1024."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """What was found in one image; the surest class comes first.

    Attributes:
        labels: int64 [N] of the K classes.
        scores: float32 [N]: the class's probability times how sure the mask is of its own pixels.
        boxes: float32 [N, 4]: the mask's extent; right and bottom are outside. Zeros for an empty mask.
        masks: bool [N, H, W].
    """

    labels: Tensor
    scores: Tensor
    boxes: Tensor
    masks: Tensor


class Detector:
    """Finds the objects of GenEval's 80 classes.

    Args:
        network: with settled weights.
        label, digest: whose weights they are, for results; see `DetectorWeights`.
    """

    def __init__(
        self, network: Mask2FormerForUniversalSegmentation, *, label: str, digest: str, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.network = settle(network, self.device, torch.float32)
        self.label, self.digest = label, digest

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> Detector:
        """Load a detector from a folder; see `load_detector_weights`."""
        weights = load_detector_weights(folder)
        return cls(weights.network, label=weights.label, digest=weights.digest, device=device)

    def detect(self, image: UInt8Array, *, above: float = 0.0) -> dict[str, list[Detected]]:
        """Return the objects of a uint8 RGB image [H, W, 3] by class.

        Args:
            above: objects that surely score no more than this may be left out, which saves their masks.
        """
        pixels = detector_pixels(image)
        classes_QK, masks_QHW = self.logits(pixels.tensor)
        objects = find_objects(classes_QK, masks_QHW, pixels, image.shape[:2], above=above)
        labels, scores = objects.labels.tolist(), objects.scores.cpu().numpy()
        boxes, masks = objects.boxes.cpu().numpy(), objects.masks.cpu().numpy()
        found: dict[str, list[Detected]] = {}
        for label, score, box, mask in zip(labels, scores, boxes, masks, strict=True):
            found.setdefault(CLASS_NAMES[label], []).append(
                Detected(box=box, score=np.float32(score), mask=mask)
            )
        return found

    def logits(self, pixels_1CHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 logits [Q, K + 1] of classes and [Q, h, w] of masks, at a quarter of the sides."""
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            output = self.network(pixel_values=pixels_1CHW.to(self.device))
        return output.class_queries_logits[0], output.masks_queries_logits[0]


def find_objects(
    classes_QK: Tensor,
    masks_Qhw: Tensor,
    pixels: DetectorPixels,
    image_size: tuple[int, ...],
    *,
    above: float = 0.0,
    most: int = MOST_OBJECTS,
) -> Objects:
    """Return the objects that logits tell of.

    Masks are brought to the padded input's size, cut, and brought to the image's; they are never merged.

    Args:
        classes_QK: [Q, K + 1]; the last class is no object.
        masks_Qhw: [Q, h, w].
        pixels: that the logits are of.
        image_size: (H, W) of the image.
        above: pairs whose class is no more probable than this are left out: no mask is surer than 1.
        most: pairs of a query and a class that are looked at.
    """
    classes = classes_QK.shape[1] - 1
    sure, pairs = classes_QK.softmax(dim=-1)[:, :-1].flatten().topk(min(most, classes * len(classes_QK)))
    pairs, sure = pairs[sure > above], sure[sure > above]
    labels, queries = pairs % classes, pairs // classes
    padded = tuple(pixels.tensor.shape[2:])
    height, width = image_size
    masks = torch.zeros((len(pairs), height, width), dtype=torch.bool, device=masks_Qhw.device)
    mask_scores = torch.zeros(len(pairs), device=masks_Qhw.device)
    for start in range(0, len(pairs), _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        large = to_size(masks_Qhw[queries[part]], padded)[:, : pixels.height, : pixels.width]
        logits = to_size(large, (height, width))
        inside = logits > 0
        masks[part] = inside
        total, size = (logits.sigmoid() * inside).flatten(1).sum(1), inside.flatten(1).sum(1)
        mask_scores[part] = total / (size + 1e-6)
    return Objects(labels=labels, scores=sure * mask_scores, boxes=_boxes(masks), masks=masks)


def to_size(maps_NHW: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return maps [N, h, w] brought to another size, bilinearly and without antialiasing."""
    return F.interpolate(maps_NHW[None], size=size, mode="bilinear", align_corners=False)[0]


def _boxes(masks_NHW: Tensor) -> Tensor:
    """Return float32 [N, 4]: the extent of each mask, zeros for an empty one."""
    boxes = torch.zeros((len(masks_NHW), 4), device=masks_NHW.device)
    for box, mask in zip(boxes, masks_NHW, strict=True):
        columns, rows = mask.any(dim=0).nonzero(), mask.any(dim=1).nonzero()
        if len(rows):
            box[:] = torch.stack([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1])
    return boxes
