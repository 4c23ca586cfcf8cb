"""A reward read off the feature map: what a reward's network sees of an image, without decoding the image.

    feature map --MapPatches--> patch embeddings --the reward's own network--> score
    feature map --decoder--> image --patch convolution--> patch embeddings --> ...     (what it stands for)

A small decoder gives what decoder and patch convolution together would; everything behind it is the reward
itself, so that scores are on its scale. It is trained for one image tokenizer and one reward
(`recipes.shapes.map_stage`) and lies in the reward's folder.

Shape legend: B rows, d channels of the map, H W its cells, V vision width, G patches a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ttsvar_ray.errors import CheckpointError, ConfigurationError, reading_weights
from ttsvar_ray.rewards.image_reward import ImageReward
from ttsvar_ray.rewards.protocol import MapReward, Reward
from ttsvar_ray.types import Float32Array
from ttsvar_ray.vision.batches import settle
from ttsvar_ray.vision.checkpoints import load_strict
from ttsvar_ray.vision.published import MAP_PATCHES_FILE, map_patches_sizes, patch_step


class MapPatches(nn.Module):
    """From feature maps [B, d, H, H] to patch embeddings [B, V, G, G]: a small decoder, then a convolution.

    Cells and patches need not fit each other: the decoder cuts each cell into parts, of which a patch has a
    whole number.

    Args:
        channels: d.
        map_side: H.
        width, blocks: of the small decoder: channels, and residual blocks of two convolutions.
        part_channels: what it says of each part.
        vision_width: V.
        grid: G.
    """

    def __init__(
        self,
        *,
        channels: int,
        map_side: int,
        width: int,
        blocks: int,
        part_channels: int,
        vision_width: int,
        grid: int,
    ) -> None:
        super().__init__()
        self.sizes = {
            "channels": channels,
            "map_side": map_side,
            "width": width,
            "blocks": blocks,
            "part_channels": part_channels,
            "vision_width": vision_width,
            "grid": grid,
        }
        self.factor, step = patch_step(map_side, grid)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2)) for _ in range(blocks)
        )
        self.parts = nn.Conv2d(width, part_channels * self.factor**2, 3, padding=1)
        self.patch = nn.Conv2d(part_channels, vision_width, step, stride=step)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the patch embeddings."""
        x = self.stem(maps)
        for first, second in (block.children() for block in self.blocks):
            x = x + second(F.relu(first(F.relu(x))))
        parts = F.pixel_shuffle(self.parts(F.relu(x)), self.factor)
        # As pixels are: a decoder says more than white, too.
        patches: Tensor = self.patch(parts.clamp(-1, 1))
        return patches


class _BlipMapReward:
    """A `MapReward` of a BLIP reward, whose weights it shares."""

    def __init__(self, reward: ImageReward, patches: MapPatches) -> None:
        self._reward = reward
        self._patches = settle(patches, reward.device, reward.dtype)

    def score_maps(self, maps: Tensor, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n] scores of maps [n, d, H, W] against n texts."""
        sizes = self._patches.sizes
        expected = (len(texts), sizes["channels"], sizes["map_side"], sizes["map_side"])
        if tuple(maps.shape) != expected:
            raise ValueError(f"maps: expected {expected}, got {tuple(maps.shape)}; they are of another model")
        encoded = self._reward.encode_text(texts)
        return self._reward.run(self._forward, maps, [text.content for text in encoded])

    def _forward(self, maps: Tensor, contents: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        network = self._reward.network
        image = network.encode_patches(self._patches(maps))
        ids, mask = (torch.cat(parts) for parts in zip(*contents, strict=True))
        return network.normalise(network.head(network.read_text(image, ids, mask)))


def load_map_patches(path: Path) -> MapPatches:
    """Read `MapPatches` from their file.

    Raises:
        CheckpointError: no such file, or another kind of file.
    """
    sizes = map_patches_sizes(path)
    if sizes is None:
        raise CheckpointError(f"{path}: expected a file with sizes in its metadata, found none")
    with reading_weights(path):
        patches = MapPatches(**sizes)
        load_strict(patches, load_file(path), source=str(path))
    return patches


def own_map_reward(reward: Reward, folder: Path | None) -> MapReward:
    """Return what reads feature maps for a reward, from the reward's own folder.

    Raises:
        ConfigurationError: a reward of another kind.
        CheckpointError: its folder has no such file.
    """
    if not isinstance(reward, ImageReward) or folder is None:
        raise ConfigurationError(
            f"reward.on_map: expected the import path of a map reward of yours, because reward "
            f"{reward.name!r} has none of its own; name one, or remove strategy.map_scales"
        )
    return _BlipMapReward(reward, load_map_patches(folder / MAP_PATCHES_FILE))
