"""Decoding many feature maps, a few at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ttsvar_ray.types import UInt8Array


def decode_in_chunks(maps: Tensor, decode: Callable[[Tensor], Tensor], *, step: int) -> UInt8Array:
    """Return uint8 [B, height, width, 3], decoded `step` maps at a time.

    Where there are several chunks all have `step` maps, the last one filled up with its last: devices that
    choose kernels by shape then decode every map alike, wherever in the batch it is.

    Args:
        maps: [B, d, H, W], at least one.
        decode: [b, d, H, W] to uint8 [b, height, width, 3].
        step: most maps of one call.
    """
    rows = len(maps)
    filled = -(-rows // step) * step if rows > step else rows
    order = torch.arange(filled, device=maps.device).clamp(max=rows - 1)
    return np.concatenate([decode(maps[chunk]).cpu().numpy() for chunk in order.split(step)])[:rows]
