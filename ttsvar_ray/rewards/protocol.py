"""What the search asks of a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ttsvar_ray.types import Float32Array, UInt8Array


class Reward(Protocol):
    """Scores images against texts. Higher is better. A list in, a list out, whatever its length."""

    name: str

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n]; `images` uint8 RGB [n, height, width, 3], `texts` one per image."""
        ...
