"""A reward that likes every image the same: for timing, and to show what search does without a reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttsvar_ray.rewards.protocol import PlainReward
from ttsvar_ray.types import Float32Array, UInt8Array


class ConstantReward(PlainReward):
    """Scores every image 0 (`rewards.protocol.Reward`)."""

    name = "constant"

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n] zeros."""
        if len(images) != len(texts):
            raise ValueError(f"texts: expected one per image ({len(images)}), got {len(texts)}")
        return np.zeros(len(images), np.float32)
