"""From patch features to one vector per image: the first principal component.

Source: TTS-VAR (arXiv 2507.18537) section 3, clustering-based diversity search; the published code offers
`pca` (one decomposition per image) and `pca_all` (one for all images of a population together).
"""

from __future__ import annotations

import enum

import numpy as np
from threadpoolctl import threadpool_limits

from ttsvar_ray.types import Float32Array, Float64Array


class ComponentSign(str, enum.Enum):
    """Which of the two opposite principal directions is taken.

    DETERMINISTIC: the direction's coordinate of largest magnitude is positive; among coordinates that are
        equal up to 1e-6 of the largest, the first one counts. It does not depend on the linear algebra
        library. Near-identical images get near-identical features, unless two coordinates of opposite signs
        are both nearly the largest: no rule is continuous everywhere (docs/features.md has counts).
    PUBLISHED: whatever sign the singular value decomposition returns, as in the published code. It depends
        on the linear algebra library, and two near-identical images can land at opposite points.
    """

    DETERMINISTIC = "deterministic"
    PUBLISHED = "published"


def first_component(patches: Float32Array, sign: ComponentSign) -> Float32Array:
    """Return float32 [n, num_patches]: each image's patches along that image's own first principal direction.

    Args:
        patches: float32 [n, num_patches, width].
    """
    return np.stack([_project(image, sign) for image in patches]) if len(patches) else patches[:, :, 0]


def first_component_of_all(patches: Float32Array, sign: ComponentSign) -> Float32Array:
    """Return float32 [n, num_patches]: all images' patches along one direction, that of the whole population.

    The result for one image depends on the others: give it whole populations in slot order, never shards or
    micro-batches. One thread computes it, because sums split among threads round differently.

    Args:
        patches: float32 [n, num_patches, width].
    """
    count, num_patches, width = patches.shape
    with threadpool_limits(limits=1, user_api="blas"):
        together = _project(patches.reshape(count * num_patches, width), sign)
    return together.reshape(count, num_patches)


def _project(points: Float32Array, sign: ComponentSign) -> Float32Array:
    """Return float32 [points]: the centred points [points, width] along their first principal direction."""
    if sign is ComponentSign.PUBLISHED:
        centred32 = points - points.mean(axis=0, keepdims=True)
        _, _, directions = np.linalg.svd(centred32, full_matrices=False)
        published: Float32Array = (centred32 @ directions[0]).astype(np.float32)
        return published
    centred = points.astype(np.float64)
    centred -= centred.mean(axis=0, keepdims=True)
    projected: Float32Array = (centred @ _oriented(_first_direction(centred))).astype(np.float32)
    return projected


def _first_direction(centred: Float64Array) -> Float64Array:
    """Return the first right singular vector [width], from the smaller of the two Gram matrices."""
    count, width = centred.shape
    if width <= count:
        direction: Float64Array = np.linalg.eigh(centred.T @ centred)[1][:, -1]
        return direction
    direction = centred.T @ np.linalg.eigh(centred @ centred.T)[1][:, -1]
    length = np.linalg.norm(direction)
    # Patches that are all equal have no direction; their projections are zero whichever is taken.
    return direction / length if length > 0 else direction


def _oriented(direction: Float64Array) -> Float64Array:
    """Return the direction or its opposite, so that its largest coordinate is positive."""
    magnitude = np.abs(direction)
    leading = int(np.argmax(magnitude >= magnitude.max() * (1 - 1e-6)))
    return -direction if direction[leading] < 0 else direction
