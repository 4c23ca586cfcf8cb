"""Feature extractors made of a patch backbone, and of a reduction where it can be made image by image.

Shape legend: B images, P patches, W width, M the smaller of P and W.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttsvar_ray.features.backbones import PatchBackbone, load_backbone
from ttsvar_ray.search.principal_component import ComponentSign, first_component
from ttsvar_ray.types import Float32Array, UInt8Array

SQUARINGS = 20
"""Of the Gram matrix: eigenvectors other than the first are left with (ratio of eigenvalues) ^ 2^20."""


def first_component_on_device(patches_BPW: Tensor) -> Tensor:
    """Return float32 [B, P]: each image's patches along its first principal direction.

    The rule for the sign is that of `search.principal_component.ComponentSign.DETERMINISTIC`. A matrix that
    is squared again and again keeps its largest eigenvector alone: matrix products in place of an eigenvalue
    solver, which is why this is quick on a GPU.

    Tolerance: where the two largest eigenvalues differ by more than one part in 10,000, the result is that of
    `search.principal_component.first_component` but for 1e-5 of its deviation. Of closer ones neither knows
    a direction: both return a mixture.
    """
    centred = patches_BPW.double()
    centred = centred - centred.mean(dim=1, keepdim=True)
    by_width = centred.shape[2] <= centred.shape[1]
    power_BMM = _unit_trace(centred.mT @ centred if by_width else centred @ centred.mT)
    for _ in range(SQUARINGS):
        power_BMM = _unit_trace(power_BMM @ power_BMM)
    # Each column of what is left is a multiple of the eigenvector; the longest one is known best.
    longest = power_BMM.diagonal(dim1=1, dim2=2).argmax(dim=1)
    vector_BM1 = power_BMM.gather(2, longest[:, None, None].expand(-1, power_BMM.shape[1], 1))
    direction_BW1 = _unit_length(vector_BM1 if by_width else centred.mT @ vector_BM1)
    # Once more through the patches themselves, which takes away what the squarings rounded.
    direction_BW1 = _oriented(_unit_length(centred.mT @ (centred @ direction_BW1)))
    return (centred @ direction_BW1).squeeze(2).float()


def _unit_trace(matrix_BMM: Tensor) -> Tensor:
    trace = matrix_BMM.diagonal(dim1=1, dim2=2).sum(dim=1)
    # Patches that are all equal have no direction; zero is what their projections are whichever is taken.
    return matrix_BMM / trace.clamp_min(torch.finfo(trace.dtype).tiny)[:, None, None]


def _unit_length(vectors_BM1: Tensor) -> Tensor:
    length = vectors_BM1.norm(dim=1, keepdim=True)
    return vectors_BM1 / length.clamp_min(torch.finfo(length.dtype).tiny)


def _oriented(direction_BW1: Tensor) -> Tensor:
    """Return each direction or its opposite, so that its largest coordinate is positive."""
    magnitude = direction_BW1.abs()
    largest = magnitude >= magnitude.amax(dim=1, keepdim=True) * (1 - 1e-6)
    places = torch.arange(magnitude.shape[1], 0, -1, device=magnitude.device)[None, :, None]
    leading = (largest * places).argmax(dim=1, keepdim=True)
    return torch.where(direction_BW1.gather(1, leading) < 0, -direction_BW1, direction_BW1)


class PatchFeatures:
    """What a reduction makes of the patches of each image (`features.registry.FeatureExtractor`).

    Args:
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


def load_pca(path: Path, *, pca_sign: str, **how: Any) -> PatchFeatures:
    """Load `pca`; see `load_backbone`."""
    return principal_component_features(load_backbone(path, **how), ComponentSign(pca_sign))


def load_pca_all(path: Path, **how: Any) -> PatchFeatures:
    """Load `pca_all`: [n, num_patches, width], every patch as it is; see `load_backbone`.

    The one principal direction of a whole population is known only when all of it has been seen, so the
    selection reduces these features (`search.principal_component.first_component_of_all`).
    """
    backbone = load_backbone(path, **how)
    return PatchFeatures(f"pca_all({backbone.name})", backbone, lambda patches: patches)


def load_pool(path: Path, **how: Any) -> PatchFeatures:
    """Load `pool`: [n, width], the mean over patches; see `load_backbone`."""
    backbone = load_backbone(path, **how)
    return PatchFeatures(f"pool({backbone.name})", backbone, mean_over_patches)
