"""Twenty pictures that anybody can caption, each with a right and a wrong caption.

A reward whose scores are not finite, or all the same, fails a search or decides nothing in it, hours after
its start. The pictures are drawn here, so that nothing is fetched.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ttsvar_ray.rewards.protocol import Reward, RewardEnsemble
from ttsvar_ray.types import Float32Array, UInt8Array

SIZE = 224
_COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 150, 60),
    "blue": (40, 70, 210),
    "yellow": (240, 200, 40),
    "purple": (140, 40, 170),
}
_SHAPES = ("circle", "ring", "cross", "bar")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _PairScores:
    """What a reward makes of the known pairs.

    Attributes:
        right, wrong: float32 [20], of each picture with its own caption and with another picture's.
    """

    right: Float32Array
    wrong: Float32Array

    @property
    def are_finite(self) -> bool:
        """Whether all scores are numbers."""
        return bool(np.isfinite(self.right).all() and np.isfinite(self.wrong).all())

    @property
    def problem(self) -> str:
        """What keeps such scores from steering anything; "" for nothing."""
        scores = np.concatenate((self.right, self.wrong))
        if count := int((~np.isfinite(scores)).sum()):
            return f"{count} of {len(scores)} scores of known pairs are not finite"
        if np.ptp(scores) == 0:
            return f"all {len(scores)} scores of known pairs are {scores[0]:g}"
        return ""

    @property
    def reads_texts(self) -> bool:
        """Whether any picture's score differs by the caption."""
        return bool((self.right != self.wrong).any())

    @property
    def wins(self) -> int:
        """How many pictures score higher with their own caption."""
        return int((self.right > self.wrong).sum())


def score_known_pairs(reward: Reward) -> _PairScores:
    """Return a reward's scores of the twenty pictures with both captions."""
    pictures, captions = known_pictures()
    # Another colour and another shape.
    others = captions[5:] + captions[:5]
    right, wrong = (
        RewardEnsemble([reward]).score(pictures, texts).rewards[:, 0] for texts in (captions, others)
    )
    return _PairScores(right=right, wrong=wrong)


def known_pictures() -> tuple[UInt8Array, list[str]]:
    """Return uint8 RGB [20, 224, 224, 3], and a caption of each."""
    named = list(itertools.product(_COLOURS, _SHAPES))
    pictures = np.stack([_picture(colour, shape) for colour, shape in named])
    return pictures, [f"a photo of a {colour} {shape}" for colour, shape in named]


def _picture(colour: str, shape: str) -> UInt8Array:
    """Return uint8 RGB [224, 224, 3]: one thing in the middle of a light ground."""
    image = Image.new("RGB", (SIZE, SIZE), (235, 235, 232))
    draw, fill = ImageDraw.Draw(image), _COLOURS[colour]
    if shape == "circle":
        draw.ellipse((57, 57, 167, 167), fill=fill)
    elif shape == "ring":
        draw.ellipse((57, 57, 167, 167), outline=fill, width=26)
    elif shape == "cross":
        draw.rectangle((52, 96, 172, 128), fill=fill)
        draw.rectangle((96, 52, 128, 172), fill=fill)
    else:
        draw.rectangle((47, 92, 177, 132), fill=fill)
    return np.asarray(image)
