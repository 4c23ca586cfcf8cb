"""What is known, without torch, of the convolutions that read a reward's patches off a feature map."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ttsvar_ray.vision.published import FLOAT32_BYTES, NetworkCost

MAP_PATCHES_FILE = "map_patches.safetensors"
"""In the folder of a reward that can read feature maps (`rewards.map_reward`)."""


def map_patches_sizes(path: Path) -> dict[str, int] | None:
    """Return the sizes in a file's metadata; None where there is no such file, or none in it."""
    try:
        with safe_open(path, framework="np") as file:
            sizes = json.loads(file.metadata()["sizes"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return sizes if isinstance(sizes, dict) else None


def patch_step(map_side: int, grid: int) -> tuple[int, int]:
    """Return into how many parts a cell is cut along a side, and how many of them a patch has."""
    factor = grid // math.gcd(map_side, grid)
    return factor, map_side * factor // grid


def map_patches_cost(
    *,
    channels: int,
    map_side: int,
    width: int,
    blocks: int,
    part_channels: int,
    vision_width: int,
    grid: int,
) -> NetworkCost:
    """Return what the convolutions cost, sizes as of `rewards.map_reward.MapPatches`."""
    factor, step = patch_step(map_side, grid)
    cells, parts = map_side**2, part_channels * factor**2
    inner = 9 * (channels * width + 2 * blocks * width**2 + width * parts)
    patch = step**2 * part_channels * vision_width
    return NetworkCost(
        parameters=inner + patch + (1 + 2 * blocks) * width + parts + vision_width,
        image_flops=2 * (cells * inner + grid**2 * patch),
        activation_bytes=3 * FLOAT32_BYTES * cells * max(width, parts),
    )
