"""How large images are decoded, and how many at once: decides memory, so cost models read it, too."""

from __future__ import annotations

SELECTOR_PIXELS = 256
"""Longer side of an image decoded for selectors: they look at 224 pixels anyway."""

MOST_DECODE_ROWS = 8

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
