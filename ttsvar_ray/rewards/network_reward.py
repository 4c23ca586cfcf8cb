"""What all rewards with a network share: batches, padding, cached texts, checks.

Shape legend: B rows, C channels, H W pixels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ttsvar_ray.rewards.pixel_recipe import PixelRecipe
from ttsvar_ray.rewards.protocol import RewardText
from ttsvar_ray.types import Float32Array, UInt8Array

MOST_CACHED_TEXTS = 4096
KERNEL_STEP = 64
"""Values in one step of an elementwise CPU kernel: four vectors of sixteen float32."""
HEAD_BLOCK = 32
"""Rows of a head are computed in multiples of this: a multiple of every block that CPU kernels use."""


class NetworkReward(ABC):
    """A `rewards.protocol.Reward` that runs a network on one device.

    A row's score does not depend on the other rows. On CPUs a lone image is doubled, since convolutions of
    one image round differently; batches are padded to `cpu_rows`, see `rows_without_tail`; what runs on one
    vector per image goes through `in_whole_blocks`. Each text is encoded alone. On accelerators, where
    kernels are chosen by shape, every batch is padded to `batch_rows`.

    Args:
        name: written to the output rows.
        recipe: from images to pixels.
        device: torch device name.
        dtype: of weights and activations.
        batch_rows: most images in one forward.
        cpu_rows: on a CPU, batches are padded to a multiple of this.
    """

    def __init__(
        self,
        *,
        name: str,
        recipe: PixelRecipe,
        device: str,
        dtype: torch.dtype,
        batch_rows: int,
        cpu_rows: int = 1,
    ) -> None:
        self.name = name
        self.recipe = recipe
        self.device = torch.device(device)
        self.dtype = dtype
        self.batch_rows = batch_rows
        self.cpu_rows = cpu_rows
        self._texts: dict[str, RewardText] = {}

    def preprocess(self, images: UInt8Array) -> Tensor:
        """Return float32 [n, 3, size, size] normalised pixels; `images` uint8 RGB [n, height, width, 3]."""
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ValueError(
                f"images: expected uint8 [n, height, width, 3], got {images.dtype} {images.shape}"
            )
        return self.recipe.apply(images, self.device)

    def encode_text(self, texts: Sequence[str]) -> list[RewardText]:
        """Return each text as the network reads it; each distinct text is encoded once."""
        if len(self._texts) > MOST_CACHED_TEXTS:
            self._texts.clear()
        for text in texts:
            if text not in self._texts:
                with torch.inference_mode():
                    self._texts[text] = self._encode(text)
        return [self._texts[text] for text in texts]

    def score_prepared(self, pixels: Tensor, texts: Sequence[RewardText]) -> Float32Array:
        """Return float32 [n] scores.

        Args:
            pixels: float32 [n, 3, size, size], from `preprocess`.
            texts: n texts from `encode_text`, one per image.
        """
        if len(pixels) != len(texts):
            raise ValueError(f"texts: expected one per image ({len(pixels)}), got {len(texts)}")
        contents = [text.content for text in texts]
        step = self.batch_rows
        chunks = [
            self._score_chunk(pixels[start : start + step], contents[start : start + step])
            for start in range(0, len(pixels), step)
        ]
        return np.concatenate(chunks) if chunks else np.zeros(0, np.float32)

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n] scores of uint8 RGB [n, height, width, 3] against n texts."""
        if len(images) != len(texts):
            raise ValueError(f"texts: expected one per image ({len(images)}), got {len(texts)}")
        return self.score_prepared(self.preprocess(images), self.encode_text(texts))

    def _score_chunk(self, pixels: Tensor, contents: Sequence[Any]) -> Float32Array:
        rows = len(pixels)
        whole = rows + -rows % self.cpu_rows
        wanted = max(2, whole) if self.device.type == "cpu" else self.batch_rows
        if wanted > rows:
            pixels = torch.cat([pixels, pixels[-1:].expand(wanted - rows, -1, -1, -1)])
            contents = [*contents, *[contents[-1]] * (wanted - rows)]
        with torch.inference_mode():
            # Convolutions round by how their input lies in memory, so it always lies channels first.
            scores = self._forward(pixels.to(self.device, self.dtype).contiguous(), contents)
        result: Float32Array = scores[:rows].float().cpu().numpy()
        return result

    @abstractmethod
    def _encode(self, text: str) -> RewardText:
        """Return one text as `_forward` reads it."""

    @abstractmethod
    def _forward(self, pixels_BCHW: Tensor, contents: Sequence[Any]) -> Tensor:
        """Return the scores [B] of pixels against the contents of B texts."""


_Module = TypeVar("_Module", bound=nn.Module)


def settle(network: _Module, device: torch.device, dtype: torch.dtype) -> _Module:
    """Prepare a loaded network for scoring: on its device, in memory of its own, without gradients.

    Weights that are still views of a mapped file lie wherever the file has them, and CPU kernels round by
    alignment: the same weights out of another file would score by another last bit.
    """
    network.requires_grad_(False).eval()
    for parameter in network.parameters():
        parameter.data = parameter.data.to(device, dtype, copy=True).contiguous()
    return network.to(device)


def rows_without_tail(*values_per_image: int) -> int:
    """Return the fewest images whose values fill whole steps of CPU kernels.

    Kernels work through a tensor in steps and take what is left over one by one, by another routine: the last
    values of an activation function are rounded differently where the whole does not fill its last step.

    Args:
        values_per_image: of each activation function's input: tokens times width.
    """
    return max(KERNEL_STEP // math.gcd(KERNEL_STEP, values) for values in values_per_image)


def in_whole_blocks(rows: Tensor) -> Tensor:
    """Return [n, ...] padded with its last row to a multiple of `HEAD_BLOCK` rows.

    CPU kernels take matrices with few rows in blocks and round those left over differently; what follows
    a network's last token mixing has one row per image, so without this a row would depend on how many
    others there are.
    """
    missing = -len(rows) % HEAD_BLOCK
    if not missing:
        return rows
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
