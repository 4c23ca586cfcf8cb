"""Feature extractors made of a patch backbone, and of a reduction where it can be made image by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ttsvar_ray.features.backbones import PatchBackbone, load_backbone
from ttsvar_ray.search.principal_component import ComponentSign, first_component
from ttsvar_ray.types import Float32Array, Preprocessing, UInt8Array


class PrincipalComponentFeatures:
    """`pca`: float32 [n, num_patches], each image's patches along its own first principal direction."""

    def __init__(self, backbone: PatchBackbone, sign: ComponentSign) -> None:
        self.name = f"pca({backbone.name}, {sign.value} sign)"
        self._backbone = backbone
        self._sign = sign

    def extract(self, images: UInt8Array) -> Float32Array:
        """Return the features of uint8 RGB [n, height, width, 3] images."""
        return first_component(self._backbone.patches(images), self._sign)


class WholePatchFeatures:
    """`pca_all`: float32 [n, num_patches, width], every patch as it is.

    The one principal direction of a whole population is known only when all of it has been seen, so the
    selection reduces these features (`search.principal_component.first_component_of_all`).
    """

    def __init__(self, backbone: PatchBackbone) -> None:
        self.name = f"pca_all({backbone.name})"
        self._backbone = backbone

    def extract(self, images: UInt8Array) -> Float32Array:
        """Return the features of uint8 RGB [n, height, width, 3] images."""
        return self._backbone.patches(images)


class PooledFeatures:
    """`pool`: float32 [n, width], the mean over patches."""

    def __init__(self, backbone: PatchBackbone) -> None:
        self.name = f"pool({backbone.name})"
        self._backbone = backbone

    def extract(self, images: UInt8Array) -> Float32Array:
        """Return the features of uint8 RGB [n, height, width, 3] images."""
        return mean_over_patches(self._backbone.patches(images))


def mean_over_patches(patches: Float32Array) -> Float32Array:
    """Return float32 [n, width] of [n, num_patches, width]."""
    pooled: Float32Array = patches.mean(axis=1, dtype=np.float64).astype(np.float32)
    return pooled


def load_pca(
    path: Path, *, pca_sign: str, device: str, preprocessing: Preprocessing
) -> PrincipalComponentFeatures:
    """Load `pca`; see `load_backbone`."""
    backbone = load_backbone(path, device=device, preprocessing=preprocessing)
    return PrincipalComponentFeatures(backbone, ComponentSign(pca_sign))


def load_pca_all(path: Path, *, device: str, preprocessing: Preprocessing) -> WholePatchFeatures:
    """Load `pca_all`; see `load_backbone`."""
    return WholePatchFeatures(load_backbone(path, device=device, preprocessing=preprocessing))


def load_pool(path: Path, *, device: str, preprocessing: Preprocessing) -> PooledFeatures:
    """Load `pool`; see `load_backbone`."""
    return PooledFeatures(load_backbone(path, device=device, preprocessing=preprocessing))
