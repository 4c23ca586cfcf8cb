"""Feature extractors made of a patch backbone, and of a reduction where it can be made image by image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from ttsvar_ray.features.backbones import PatchBackbone, load_backbone
from ttsvar_ray.features.device_component import first_component_on_device
from ttsvar_ray.search.principal_component import ComponentSign, first_component
from ttsvar_ray.types import Float32Array, Precision, Preprocessing, UInt8Array


class PatchFeatures:
    """What a reduction makes of the patches of each image (`features.registry.FeatureExtractor`).

    Args:
        name: of the extractor.
        backbone: from images to patches, float32 [n, num_patches, width].
        reduce: from patches to float32 [n, feature_dim], or to what the selection reduces itself.
        reduce_on_device: the same, used in its place where the backbone is not on a CPU.
    """

    def __init__(
        self,
        name: str,
        backbone: PatchBackbone,
        reduce: Callable[[Float32Array], Float32Array],
        *,
        reduce_on_device: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.name = name
        self._backbone = backbone
        self._reduce = reduce
        self._reduce_on_device = reduce_on_device if backbone.device.type != "cpu" else None

    def extract(self, images: UInt8Array) -> Float32Array:
        """Return the features of uint8 RGB [n, height, width, 3] images."""
        if self._reduce_on_device is not None:
            return self._backbone.patches(images, self._reduce_on_device)
        return self._reduce(self._backbone.patches(images))


def principal_component_features(backbone: PatchBackbone, sign: ComponentSign) -> PatchFeatures:
    """Return `pca`: [n, num_patches], each image's patches along its own first principal direction."""
    name = f"pca({backbone.name}, {sign.value} sign)"
    # The published sign is whatever a singular value decomposition on a CPU returns.
    on_device = first_component_on_device if sign is ComponentSign.DETERMINISTIC else None
    reduce = partial(first_component, sign=sign)
    return PatchFeatures(name, backbone, reduce, reduce_on_device=on_device)


def mean_over_patches(patches: Float32Array) -> Float32Array:
    """Return float32 [n, width] of [n, num_patches, width]."""
    pooled: Float32Array = patches.mean(axis=1, dtype=np.float64).astype(np.float32)
    return pooled


def load_pca(
    path: Path, *, pca_sign: str, device: str, preprocessing: Preprocessing, precision: Precision
) -> PatchFeatures:
    """Load `pca`; see `load_backbone`."""
    backbone = load_backbone(path, device=device, preprocessing=preprocessing, precision=precision)
    return principal_component_features(backbone, ComponentSign(pca_sign))


def load_pca_all(
    path: Path, *, device: str, preprocessing: Preprocessing, precision: Precision
) -> PatchFeatures:
    """Load `pca_all`: [n, num_patches, width], every patch as it is; see `load_backbone`.

    The one principal direction of a whole population is known only when all of it has been seen, so the
    selection reduces these features (`search.principal_component.first_component_of_all`).
    """
    backbone = load_backbone(path, device=device, preprocessing=preprocessing, precision=precision)
    return PatchFeatures(f"pca_all({backbone.name})", backbone, lambda patches: patches)


def load_pool(
    path: Path, *, device: str, preprocessing: Preprocessing, precision: Precision
) -> PatchFeatures:
    """Load `pool`: [n, width], the mean over patches; see `load_backbone`."""
    backbone = load_backbone(path, device=device, preprocessing=preprocessing, precision=precision)
    return PatchFeatures(f"pool({backbone.name})", backbone, mean_over_patches)
