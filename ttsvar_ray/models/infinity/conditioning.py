"""What the transformer knows of a text, computed once per prompt and shared by its trajectories.

Legend: S streams (1, or 2 with guidance: conditional, unconditional), P texts, C width, H heads, T padded
text length, D head width, B trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The text side of a forward pass.

    Attributes:
        pooled: float32 [S, P, C], first token and source of all modulations.
        block_modulation: float32 [S, P, 6, C], added to each block's own.
        head_modulation: float32 [S, P, 2, C], scale and shift before the head.
        text_mask: bool [P, T], true for real tokens; both streams share it.
        keys, values: per layer [S, P, H, T, D] for cross-attention.
    """

    pooled: Tensor
    block_modulation: Tensor
    head_modulation: Tensor
    text_mask: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def num_streams(self) -> int:
        return self.pooled.shape[0]

    @property
    def num_texts(self) -> int:
        return self.pooled.shape[1]

    @property
    def nbytes(self) -> int:
        tensors = (self.pooled, self.block_modulation, self.head_modulation, *self.keys, *self.values)
        return sum(t.numel() * t.element_size() for t in tensors)

    def gather(self, texts: Tensor) -> Conditioning:
        """Select texts; `texts` is int64 [P'] on the conditioning's device."""
        return Conditioning(
            pooled=self.pooled.index_select(1, texts),
            block_modulation=self.block_modulation.index_select(1, texts),
            head_modulation=self.head_modulation.index_select(1, texts),
            text_mask=self.text_mask.index_select(0, texts),
            keys=tuple(k.index_select(1, texts) for k in self.keys),
            values=tuple(v.index_select(1, texts) for v in self.values),
        )

    @staticmethod
    def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
        """Stack the texts of several conditionings of the same model."""
        if len(parts) == 1:
            return parts[0]
        return Conditioning(
            pooled=torch.cat([p.pooled for p in parts], dim=1),
            block_modulation=torch.cat([p.block_modulation for p in parts], dim=1),
            head_modulation=torch.cat([p.head_modulation for p in parts], dim=1),
            text_mask=torch.cat([p.text_mask for p in parts], dim=0),
            keys=tuple(torch.cat(layer, dim=1) for layer in zip(*(p.keys for p in parts), strict=True)),
            values=tuple(torch.cat(layer, dim=1) for layer in zip(*(p.values for p in parts), strict=True)),
        )


def rows_of(per_text: Tensor, text_rows: Tensor | None) -> Tensor:
    """Spread [S, P, ...] over trajectories: [S * B, ...]; None means that trajectory b has text b."""
    if text_rows is not None:
        per_text = per_text.index_select(1, text_rows)
    return per_text.flatten(0, 1)
