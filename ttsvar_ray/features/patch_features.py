"""Feature extractors made of a patch backbone and a reduction to one vector per image."""

from __future__ import annotations

from ttsvar_ray.features.backbone import PatchBackbone
from ttsvar_ray.features.principal_component import ComponentSign, first_component, mean_over_patches
from ttsvar_ray.types import Float32Array, UInt8Array


class PrincipalComponentFeatures:
    """`pca`: float32 [n, num_patches], each image's patches along its own first principal direction."""

    def __init__(self, backbone: PatchBackbone, sign: ComponentSign) -> None:
        self.name = f"pca({backbone.name}, {sign.value} sign)"
        self._backbone = backbone
        self._sign = sign

    def extract(self, images: UInt8Array) -> Float32Array:
        """Return the features of uint8 RGB [n, height, width, 3] images."""
        return first_component(self._backbone.patches(images), self._sign)


class PooledFeatures:
    """`pool`: float32 [n, width], the mean over patches."""

    def __init__(self, backbone: PatchBackbone) -> None:
        self.name = f"pool({backbone.name})"
        self._backbone = backbone

    def extract(self, images: UInt8Array) -> Float32Array:
        """Return the features of uint8 RGB [n, height, width, 3] images."""
        return mean_over_patches(self._backbone.patches(images))
