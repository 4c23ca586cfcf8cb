"""A reward that likes every image the same: for timing, and to show what search does without a judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttsvar_ray.rewards.protocol import RewardText
from ttsvar_ray.types import Float32Array, UInt8Array


class ConstantReward:
    """Scores every image 0 (`rewards.protocol.Reward`)."""

    name = "constant"
    recipe = "images as they are"

    def preprocess(self, images: UInt8Array) -> UInt8Array:
        """Return the images."""
        return images

    def encode_text(self, texts: Sequence[str]) -> list[RewardText]:
        """Return texts without content."""
        return [RewardText() for _ in texts]

    def score_prepared(self, pixels: UInt8Array, texts: Sequence[RewardText]) -> Float32Array:
        """Return float32 [n] zeros."""
        if len(pixels) != len(texts):
            raise ValueError(f"texts: expected one per image ({len(pixels)}), got {len(texts)}")
        return np.zeros(len(pixels), np.float32)

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n] zeros."""
        return self.score_prepared(images, self.encode_text(texts))
