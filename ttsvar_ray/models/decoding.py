"""From feature maps to images: at which size, how many at once, and into which numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ttsvar_ray.types import UInt8Array

if TYPE_CHECKING:  # Costs ask for the sizes, in processes that run no network.
    from torch import Tensor

SELECTOR_PIXELS = 256
"""Longer side of an image decoded for selectors: they look at 224 pixels anyway."""

MOST_DECODE_ROWS = 8
"""Bounds the decoder's memory, and is below what `row_stability.pad_images` promises."""

DECODE_PIXELS = 9 * 2**18
"""Pixels decoded at once: two images of about 1024 x 1024, at 2.7 GB each in bfloat16. More of them would
not be faster: one already fills a GPU."""


def decode_rows(image_height: int, image_width: int) -> int:
    """Return how many images of a size are decoded in one call, 1 to `MOST_DECODE_ROWS`."""
    return max(1, min(MOST_DECODE_ROWS, DECODE_PIXELS // (image_height * image_width)))


def selector_map_size(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Return (height, width) of the feature map that is decoded for selectors.

    Args:
        height, width: of the full feature map, in cells.
        patch_size: pixels per cell.
    """
    largest = max(SELECTOR_PIXELS // patch_size, 1)
    if max(height, width) <= largest:
        return height, width
    factor = largest / max(height, width)
    return max(round(height * factor), 1), max(round(width * factor), 1)


def decode_in_chunks(maps: Tensor, decode: Callable[[Tensor], Tensor], *, step: int) -> UInt8Array:
    """Return uint8 [B, height, width, 3], decoded `step` maps at a time.

    Where there are several chunks all have `step` maps, the last one filled up with its last: devices that
    choose kernels by shape then decode every map alike, wherever in the batch it is.

    Args:
        maps: [B, d, H, W], at least one.
        decode: [b, d, H, W] to uint8 [b, height, width, 3].
        step: most maps of one call.
    """
    import torch

    rows = len(maps)
    filled = -(-rows // step) * step if rows > step else rows
    order = torch.arange(filled, device=maps.device).clamp(max=rows - 1)
    return np.concatenate([decode(maps[chunk]).cpu().numpy() for chunk in order.split(step)])[:rows]


def to_uint8(image: Tensor) -> Tensor:
    """Turn [B, 3, H, W] in [-1, 1] into uint8 RGB [B, H, W, 3]; truncates, as published."""
    import torch

    return ((image.float() + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
