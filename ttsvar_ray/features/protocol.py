"""What the clustering asks of a feature extractor."""

from __future__ import annotations

from typing import Protocol

from ttsvar_ray.types import Float32Array, UInt8Array


class FeatureExtractor(Protocol):
    """Maps images to vectors whose distances mean structural difference."""

    name: str

    def extract(self, images: UInt8Array) -> Float32Array:
        """Return float32 [n, feature_dim]; `images` uint8 RGB [n, height, width, 3]."""
        ...
