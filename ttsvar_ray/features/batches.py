"""Batched forwards whose rows do not depend on the batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ttsvar_ray.types import Float32Array, UInt8Array


def run_in_batches(
    images: UInt8Array,
    forward: Callable[[UInt8Array], Tensor],
    *,
    batch_rows: int,
    device: torch.device,
) -> Float32Array:
    """Return float32 [n, ...]: `forward` over chunks of at most `batch_rows` images, without gradients.

    One-image convolutions round differently from larger ones on CPUs, so a lone image is doubled; on
    accelerators, where kernels are chosen by shape, every chunk is padded to `batch_rows`.

    Args:
        images: uint8 RGB [n >= 1, height, width, 3].
        forward: images to a tensor with one row per image.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or len(images) == 0:
        raise ValueError(
            f"images: expected uint8 [n, height, width, 3] with n >= 1, got {images.dtype} {images.shape}"
        )
    results = []
    for start in range(0, len(images), batch_rows):
        chunk = images[start : start + batch_rows]
        rows = len(chunk)
        wanted = max(2, rows) if device.type == "cpu" else batch_rows
        if wanted > rows:
            chunk = np.concatenate([chunk, np.repeat(chunk[-1:], wanted - rows, axis=0)])
        with torch.inference_mode():
            results.append(forward(chunk)[:rows].float().cpu().numpy())
    return np.concatenate(results)
