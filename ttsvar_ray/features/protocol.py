"""What the clustering asks of a feature extractor."""

from __future__ import annotations

from typing import Protocol

from ttsvar_ray.types import Float32Array, UInt8Array


class FeatureExtractor(Protocol):
    """Maps images to vectors whose distances mean structural difference.

    An image's features never depend on the other images of the call: populations are split among
    micro-batches and workers. An extractor whose reduction needs a whole population returns what that
    reduction needs, and the plan says how the selection reduces it (`search.schedule.Plan.joint_component`).
    """

    name: str

    def extract(self, images: UInt8Array) -> Float32Array:
        """Return float32 [n, feature_dim], or [n, num_patches, width] to be reduced by the selection.

        `images` are uint8 RGB [n, height, width, 3].
        """
        ...
