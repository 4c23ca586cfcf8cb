"""The state of some VAR trajectories between two scales: a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttsvar_ray.models.kv_cache import KVCache

EncodedClasses = tuple[int, ...]
"""One label per prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VarState:
    """B trajectories, possibly of several classes, before the same scale.

    Attributes:
        labels: class of each trajectory.
        summed: float32 [B, d, H, W], the feature map that the finished scales add up to.
        cache: keys and values of the finished scales.
        bits: uint8 [B, n, D] of each finished scale, on the model's device.
    """

    labels: tuple[int, ...]
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
        return len(self.labels)

    def gather(self, rows: Sequence[int]) -> VarState:
        """Select and repeat trajectories."""
        if list(rows) == list(range(self.num_rows)):
            return self
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.summed.device)
        return VarState(
            labels=tuple(self.labels[row] for row in rows),
            summed=self.summed.index_select(0, index),
            cache=self.cache.gather(index),
            bits=tuple(scale.index_select(0, index) for scale in self.bits),
        )

    @staticmethod
    def concatenate(states: Sequence[VarState]) -> VarState:
        """Stack trajectories before the same scale.

        Raises:
            ValueError: no states, or states before different scales.
        """
        scales = sorted({state.scale_index for state in states})
        if len(scales) != 1:
            raise ValueError(f"states: expected some before one common scale, got scales {scales}")
        return VarState(
            labels=tuple(label for state in states for label in state.labels),
            summed=torch.cat([state.summed for state in states]),
            cache=KVCache.concatenate([state.cache for state in states]),
            bits=tuple(torch.cat(scale) for scale in zip(*(state.bits for state in states), strict=True)),
        )
