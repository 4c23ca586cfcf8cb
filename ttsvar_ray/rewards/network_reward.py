"""What all rewards with a network share: images in batches, cached texts, checks, heads of linear layers.

Shape legend: B rows, C channels, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ttsvar_ray.rewards.protocol import RewardText
from ttsvar_ray.types import Float32Array, UInt8Array
from ttsvar_ray.vision.batches import ImageNetwork
from ttsvar_ray.vision.pixels import PixelRecipe

MOST_CACHED_TEXTS = 4096


class NetworkReward(ImageNetwork, ABC):
    """A `rewards.protocol.Reward` that runs a network on one device; each text is encoded alone.

    Args:
        name: written to the output rows.
        recipe, cpu_rows: as in `ImageNetwork`.
    """

    def __init__(
        self,
        *,
        name: str,
        recipe: PixelRecipe,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        cpu_rows: int = 1,
    ) -> None:
        super().__init__(recipe=recipe, device=device, dtype=dtype, cpu_rows=cpu_rows)
        self.name = name
        self._texts: dict[str, RewardText] = {}

    def encode_text(self, texts: Sequence[str]) -> list[RewardText]:
        """Return each text as the network reads it; each distinct text is encoded once."""
        if len(self._texts) > MOST_CACHED_TEXTS:
            self._texts.clear()
        for text in texts:
            if text not in self._texts:
                with torch.inference_mode(), self.arithmetic():
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
        if not texts:
            return np.zeros(0, np.float32)
        return self.run(self._forward, pixels, [text.content for text in texts])

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n] scores of uint8 RGB [n, height, width, 3] against n texts."""
        if len(images) != len(texts):
            raise ValueError(f"texts: expected one per image ({len(images)}), got {len(texts)}")
        return self.score_prepared(self.preprocess(images), self.encode_text(texts))

    @abstractmethod
    def _encode(self, text: str) -> RewardText:
        """Return one text as `_forward` reads it."""

    @abstractmethod
    def _forward(self, pixels_BCHW: Tensor, contents: Sequence[Any]) -> Tensor:
        """Return the scores [B] of pixels against the contents of B texts."""


class LinearHead(nn.Module):
    """Maps embeddings [B, width] to [B] by linear layers, at the indices of the published checkpoint.

    The whole is one affine map; it is kept as layers so that published weights load unchanged and round as
    published.

    Args:
        widths: of the layers' outputs; the last one is 1.
        indices: places of the linear layers; the places between them held dropouts.
    """

    def __init__(self, input_width: int, widths: Sequence[int], indices: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for index, width in zip(indices, widths, strict=True):
            self.layers[str(index)] = nn.Linear(input_width, width)
            input_width = width

    def forward(self, embeddings_BW: Tensor) -> Tensor:
        """Map [B, W] to [B]."""
        for layer in self.layers.values():
            embeddings_BW = layer(embeddings_BW)
        return embeddings_BW.squeeze(-1)
