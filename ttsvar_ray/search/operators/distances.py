"""How far apart the images of a population are, for operators that read features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ttsvar_ray.types import Float64Array


def distances(features: npt.NDArray[np.floating]) -> Float64Array:
    """Return float64 [population, population] Euclidean distances, in units of the largest feature.

    Args:
        features: [population, feature_dim], finite.
    """
    points = np.asarray(features, dtype=np.float64)
    points = points / max(float(np.abs(points).max()), np.finfo(np.float64).tiny)
    apart: Float64Array = np.sqrt(np.square(points[:, None] - points).sum(axis=2))
    return apart


def gaussian_kernel(features: npt.NDArray[np.floating], bandwidth: float) -> Float64Array:
    """Return float64 [population, population] similarities exp(-d^2 / 2 h^2), 1 for images that coincide.

    Args:
        bandwidth: h, in medians of the distances between different images of the population: a kernel then
            means the same for any features. Where all coincide, every similarity is 1.
    """
    apart = distances(features)
    different = apart[apart > 0.0]
    if not len(different):
        return np.ones_like(apart)
    width = bandwidth * float(np.median(different))
    kernel: Float64Array = np.exp(-0.5 * np.square(apart / width))
    return kernel
