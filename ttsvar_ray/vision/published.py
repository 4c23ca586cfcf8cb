"""What is known of a published network without loading it: its cost, its files, where they come from.

Pure values, read by the registries of rewards and features, by the costs and by the doctor. None needs torch,
nor does what is known of the convolutions that read a reward's patches off a feature map.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.types import Precision

FLOAT32_BYTES = 4


def read_precision(given: Precision | str, *, setting: str) -> Precision:
    """Return a precision by its name.

    Raises:
        ConfigurationError: no such precision; names the setting.
    """
    try:
        return Precision(given)
    except ValueError:
        names = ", ".join(each.value for each in Precision)
        raise ConfigurationError(f"{setting}: expected one of {names}, got {given!r}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCost:
    """What a network that looks at images costs.

    Attributes:
        parameters: of everything that is loaded, to 0.5 %.
        image_flops: of one image.
        text_flops: of one text, needed once per prompt.
        activation_bytes: most bytes alive for one image, in float32.
        layers_each: layers that are launched for every image by itself, of a network that takes no batches.
    """

    parameters: int
    image_flops: float
    text_flops: float = 0.0
    activation_bytes: int = 0
    layers_each: int = 0

    def __add__(self, other: NetworkCost) -> NetworkCost:
        return NetworkCost(
            parameters=self.parameters + other.parameters,
            image_flops=self.image_flops + other.image_flops,
            text_flops=self.text_flops + other.text_flops,
            activation_bytes=max(self.activation_bytes, other.activation_bytes),
            layers_each=self.layers_each + other.layers_each,
        )


BATCH_ROWS = 32
"""Most images in one forward of such a network."""

NO_COST = NetworkCost(parameters=0, image_flops=0.0)


@dataclass(frozen=True, slots=True)
class PublishedFiles:
    """Files of one repository of the hub, or one file at a URL.

    Attributes:
        source: "owner/name" of the hub, "owner/name@commit" of just that state of it, or the URL.
        names: of the files, in the folder afterwards.
        folder: below the network's own; "" is that itself.
    """

    source: str
    names: tuple[str, ...]
    folder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """Weights that somebody published.

    Attributes:
        cost: of the network at its published size; None where a directory's config.json says it.
        files: all that its loader reads; empty for what this package brings.
    """

    cost: NetworkCost | None
    files: tuple[PublishedFiles, ...]
    licence: str


def rounded_sides(height: int, width: int, *, side: int, fewest: int, most: int) -> tuple[int, int]:
    """Return the height and width that a Qwen-VL brings an image to.

    Args:
        height, width: of the image, in pixels.
        side: both become multiples of it.
        fewest, most: pixels of the result, as far as that allows.
    """
    high, wide = max(side, round(height / side) * side), max(side, round(width / side) * side)
    if fewest <= high * wide <= most:
        return high, wide
    grows = high * wide < fewest
    scale = math.sqrt((fewest if grows else most) / (height * width))
    whole = math.ceil if grows else math.floor
    high, wide = (max(side, whole(length * scale / side) * side) for length in (height, width))
    return high, wide


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
