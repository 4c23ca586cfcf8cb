"""The state of some trajectories between two scales, and the keys and values in it: values that never change.

Keys and values of all layers lie in one piece of memory: survivors are gathered by one copy, and the scales
of a segment are written one behind the other.

Shapes: S streams (1, or 2 with guidance: conditional, unconditional), B trajectories, H heads, L tokens so
far, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttsvar_ray.vision.pixels import to_device


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer, each [S, B, H, L, D]."""

    keys: Tensor
    values: Tensor

    def append(self, keys: Tensor, values: Tensor) -> LayerCache:
        """Return the cache with further tokens, keys and values [S, B, H, n, D]."""
        return LayerCache(torch.cat((self.keys, keys), dim=3), torch.cat((self.values, values), dim=3))


class Memory:
    """What caches of one history share: room for the keys and values of all layers.

    Attributes:
        tensor: [layers, 2, S, B, H, capacity, D], keys and values.
        taken: tokens that some cache has; what lies behind is free.
    """

    __slots__ = ("__weakref__", "taken", "tensor")

    def __init__(self, tensor: Tensor, taken: int) -> None:
        self.tensor = tensor
        self.taken = taken


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of all layers; empty before the first scale.

    A value: its tokens never change. Several caches of one history may share memory, each knowing how many of
    its tokens are its own: whoever grows the longest of them writes behind it, in place, and whoever grows a
    shorter one gets a copy, since the tokens behind that are somebody else's.
    """

    memory: Memory | None = None
    num_tokens: int = 0

    @staticmethod
    def of_layers(layers: Sequence[LayerCache]) -> KVCache:
        """Return a cache of given keys and values."""
        if not layers:
            return KVCache()
        tensor = torch.stack([torch.stack((layer.keys, layer.values)) for layer in layers])
        return _whole(tensor)

    @property
    def tensor(self) -> Tensor:
        """Keys and values of its tokens, [layers, 2, S, B, H, L, D]; not of the empty cache."""
        assert self.memory is not None, "the empty cache has no tensors"
        return self.memory.tensor[..., : self.num_tokens, :]

    @property
    def layers(self) -> tuple[LayerCache, ...]:
        """One for each layer; none before the first scale."""
        if self.memory is None:
            return ()
        return tuple(LayerCache(keys, values) for keys, values in self.tensor)

    @property
    def nbytes(self) -> int:
        """Bytes of its tokens; the memory behind them may have more."""
        if self.memory is None:
            return 0
        tensor = self.memory.tensor
        return tensor.element_size() * (tensor.numel() // tensor.shape[-2]) * self.num_tokens

    def grown(self, fresh: FreshTokens, *, capacity: int) -> KVCache:
        """Return a cache with room for further tokens, to be filled by `put` layer by layer.

        Args:
            fresh: how many tokens, of what shape. Fewer streams than the cache has: its first ones go on.
            capacity: tokens to make room for, where new memory is needed at all.
        """
        total = self.num_tokens + fresh.tokens
        memory = self.memory
        if (
            memory is not None
            and memory.taken == self.num_tokens
            and total <= memory.tensor.shape[-2]
            and memory.tensor.shape[2] == fresh.streams
        ):
            memory.taken = total
            return KVCache(memory, total)
        shape = (fresh.layers, 2, fresh.streams, fresh.rows, fresh.heads, max(capacity, total), fresh.width)
        tensor = torch.empty(shape, dtype=fresh.dtype, device=fresh.device)
        if self.memory is not None:
            tensor[..., : self.num_tokens, :] = self.tensor[:, :, : fresh.streams]
        return KVCache(Memory(tensor, total), total)

    def put(self, layer: int, keys: Tensor, values: Tensor) -> LayerCache:
        """Write the last tokens of one layer, each [S, B, H, n, D]; return all of its keys and values."""
        own = self.tensor[layer]
        first = self.num_tokens - keys.shape[3]
        own[0, ..., first:, :] = keys
        own[1, ..., first:, :] = values
        return LayerCache(own[0], own[1])

    def joined(self, layer: int, keys: Tensor, values: Tensor) -> LayerCache:
        """Return all keys and values of one layer and further ones, each [S, B, H, n, D]; keeps nothing."""
        if self.memory is None:
            return LayerCache(keys, values)
        own = self.tensor[layer, :, : keys.shape[0]]
        return LayerCache(own[0], own[1]).append(keys, values)

    def gather(self, rows: Tensor) -> KVCache:
        """Select and repeat trajectories; `rows` is int64 [B'] on the cache's device."""
        return self if self.memory is None else _whole(self.tensor.index_select(3, rows))

    def with_stream(self, other: KVCache) -> KVCache:
        """Return a cache of these streams and then another cache's, of the same tokens and rows."""
        return _whole(torch.cat((self.tensor, other.tensor), dim=2))

    @staticmethod
    def concatenate(caches: Sequence[KVCache]) -> KVCache:
        """Stack the trajectories of caches that hold the same scales."""
        if len(caches) == 1 or caches[0].memory is None:
            return caches[0]
        return _whole(torch.cat([cache.tensor for cache in caches], dim=3))


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshTokens:
    """Tokens that a cache is to take up.

    Attributes:
        tokens: how many of each sequence.
        layers, streams, rows, heads, width: of their keys and values; rows are trajectories.
        dtype, device: as well.
    """

    tokens: int
    layers: int
    streams: int
    rows: int
    heads: int
    width: int
    dtype: torch.dtype
    device: torch.device


def _whole(tensor: Tensor) -> KVCache:
    tokens = tensor.shape[-2]
    return KVCache(Memory(tensor, tokens), tokens)


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
        index = to_device(torch.tensor(list(rows), dtype=torch.int64), self.summed.device)
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
