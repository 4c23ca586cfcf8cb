"""The state of some trajectories between two scales, and the keys and values in it: values that never change.

Shapes: S streams (1, or 2 with guidance: conditional, unconditional), B trajectories, H heads, L tokens so
far, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer, each [S, B, H, L, D]."""

    keys: Tensor
    values: Tensor

    def append(self, keys: Tensor, values: Tensor) -> LayerCache:
        """Return the cache with further tokens, keys and values [S, B, H, n, D]."""
        return LayerCache(torch.cat((self.keys, keys), dim=3), torch.cat((self.values, values), dim=3))


@dataclass(frozen=True, slots=True)
class KVCache:
    """Caches of all layers; empty before the first scale."""

    layers: tuple[LayerCache, ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.layers[0].keys.shape[3] if self.layers else 0

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self.layers for t in (layer.keys, layer.values))

    def gather(self, rows: Tensor) -> KVCache:
        """Select and repeat trajectories; `rows` is int64 [B'] on the cache's device."""
        return KVCache(
            tuple(
                LayerCache(layer.keys.index_select(1, rows), layer.values.index_select(1, rows))
                for layer in self.layers
            )
        )

    @staticmethod
    def concatenate(caches: Sequence[KVCache]) -> KVCache:
        """Stack the trajectories of caches that hold the same scales."""
        if len(caches) == 1:
            return caches[0]
        return KVCache(
            tuple(
                LayerCache(
                    torch.cat([layer.keys for layer in layers], dim=1),
                    torch.cat([layer.values for layer in layers], dim=1),
                )
                for layers in zip(*(cache.layers for cache in caches), strict=True)
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleState:
    """B trajectories, possibly of several texts, before the same scale.

    Attributes:
        texts: what the family knows of each text that some trajectory has; shared between states.
        text_rows: the text of each trajectory, indices into `texts`.
        summed: float32 [B, d, H, W], the feature map that the finished scales add up to.
        cache: keys and values of the finished scales.
        bits: uint8 [B, n, D] of each finished scale, on the model's device.
    """

    texts: tuple[Any, ...]
    text_rows: tuple[int, ...]
    summed: Tensor
    cache: KVCache
    bits: tuple[Tensor, ...] = ()

    @property
    def scale_index(self) -> int:
        """Number of finished scales."""
        return len(self.bits)

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.text_rows)

    def gather(self, rows: Sequence[int]) -> ScaleState:
        """Select and repeat trajectories; texts that nobody has any more are let go."""
        if list(rows) == list(range(self.num_rows)):
            return self
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.summed.device)
        used = dict.fromkeys(self.text_rows[row] for row in rows)
        place = {text: position for position, text in enumerate(used)}
        return ScaleState(
            texts=tuple(self.texts[text] for text in used),
            text_rows=tuple(place[self.text_rows[row]] for row in rows),
            summed=self.summed.index_select(0, index),
            cache=self.cache.gather(index),
            bits=tuple(scale.index_select(0, index) for scale in self.bits),
        )

    @staticmethod
    def concatenate(states: Sequence[ScaleState]) -> ScaleState:
        """Stack trajectories before the same scale; a text that states share is kept once.

        Raises:
            ValueError: no states, or states before different scales.
        """
        scales = sorted({state.scale_index for state in states})
        if len(scales) != 1:
            raise ValueError(f"states: expected some before one common scale, got scales {scales}")
        places: dict[int, int] = {}
        texts: list[Any] = []
        text_rows: list[int] = []
        for state in states:
            for text in state.texts:
                if id(text) not in places:
                    places[id(text)] = len(texts)
                    texts.append(text)
            text_rows += [places[id(state.texts[row])] for row in state.text_rows]
        return ScaleState(
            texts=tuple(texts),
            text_rows=tuple(text_rows),
            summed=torch.cat([state.summed for state in states]),
            cache=KVCache.concatenate([state.cache for state in states]),
            bits=tuple(torch.cat(scale) for scale in zip(*(state.bits for state in states), strict=True)),
        )
