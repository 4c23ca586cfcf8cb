"""Keys and values of the finished scales, as an owned value.

Shapes: S streams (1, or 2 with guidance: conditional, unconditional), B trajectories, H heads, L tokens
so far, D head width. Every operation returns a new cache; none changes its argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
