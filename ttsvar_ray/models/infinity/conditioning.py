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


def rows_of(parts: Sequence[Tensor], text_rows: Tensor | None) -> Tensor:
    """Spread texts [S, P_i, ...] of some parts over trajectories: [S * B, ...].

    Args:
        parts: the texts of all parts are counted through.
        text_rows: int64 [B], the text of each trajectory; None means that trajectory b has text b.
    """
    per_text = parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
    if text_rows is not None:
        per_text = per_text.index_select(1, text_rows)
    return per_text.flatten(0, 1)
