"""What the extractors need from a vision network."""

from __future__ import annotations

from typing import Protocol

from ttsvar_ray.types import Float32Array, UInt8Array


class PatchBackbone(Protocol):
    """Maps images to features of their patches. A row's result does not depend on the other rows."""

    name: str

    def patches(self, images: UInt8Array) -> Float32Array:
        """Return float32 [n, num_patches, width]; `images` uint8 RGB [n, height, width, 3]."""
        ...
