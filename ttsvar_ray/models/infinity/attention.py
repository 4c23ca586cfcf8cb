"""What Infinity's attention has of its own: rotations of positions, attention to the text, pooling the text.

Legend: R rows (streams x trajectories), n tokens of this call, L tokens attended to, H heads, D head width,
C = H * D, P texts, T padded text length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ttsvar_ray.models.infinity.batch_texts import TextKeys
from ttsvar_ray.models.infinity.config import TransformerConfig
from ttsvar_ray.models.row_stability import StableLinear, stable_attention, stable_linear

ROPE_BASE = 10000.0
"""Of the rotary embedding: every scale covers the same picture, so positions are stretched to one grid."""


def rope_table(size: tuple[int, int], grid: tuple[int, int], head_dim: int) -> Tensor:
    """Return the rotations of one scale, complex64 [h * w, head_dim / 2].

    The first half of the angles belongs to the row, the second to the column. Positions are multiplied in
    float32 and rounded half to even, as in the published models.

    Args:
        size: (h, w) tokens of the scale.
        grid: (rows, columns) of the reference grid.
        head_dim: width of one head, a multiple of 4.
    """
    (height, width), (grid_rows, grid_columns) = size, grid
    half = head_dim // 2
    inverse = 1.0 / (ROPE_BASE ** (torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half))
    rows = torch.round(torch.arange(height, dtype=torch.float32, device="cpu") * (grid_rows / height))
    columns = torch.round(torch.arange(width, dtype=torch.float32, device="cpu") * (grid_columns / width))
    row_angles = torch.outer(rows, inverse)[:, None, :].expand(height, width, -1)
    column_angles = torch.outer(columns, inverse)[None, :, :].expand(height, width, -1)
    angles = torch.cat((row_angles, column_angles), dim=-1).reshape(height * width, half)
    return torch.polar(torch.ones_like(angles), angles)


class CrossAttention(nn.Module):
    """Attention from image tokens to the text."""

    zero_k_bias: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.num_heads = config.num_heads
        self.mat_q = StableLinear(width, width)
        self.mat_kv = StableLinear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width), persistent=False)
        self.proj = StableLinear(width, width)

    def text_keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [P, H, T, D] of the projected text [P, T, C]."""
        weight = self.mat_kv.weight
        bias = torch.cat((self.zero_k_bias, self.v_bias))
        kv = stable_linear(text.to(weight.dtype), weight, bias).unflatten(-1, (2, self.num_heads, -1))
        return kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)

    def forward(self, x: Tensor, texts: Sequence[TextKeys]) -> Tensor:
        """Return [R, n, C] for x [R, n, C]; `texts` names every row once."""
        q = self.mat_q(x).unflatten(-1, (self.num_heads, -1))
        if len(texts) == 1:
            # The tokens of all rows that attend to one text, in one piece.
            entries = texts[0].keys.shape[0]
            q = q.reshape(entries, -1, *q.shape[2:]).transpose(1, 2)
            attended = self._attend(q, texts[0])
        else:
            q = q.transpose(1, 2)
            attended = torch.empty_like(q)
            for text in texts:
                attended[text.rows] = self._attend(q[text.rows], text)
        return self.proj(attended.transpose(1, 2).reshape(x.shape))

    @staticmethod
    def _attend(q: Tensor, text: TextKeys) -> Tensor:
        return stable_attention(q, text.keys.to(q.dtype), text.values.to(q.dtype), mask=text.mask)


class TextPoolAttention(nn.Module):
    """One learned query per head pools a text of any length to one vector."""

    zero_k_bias: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, heads = config.embed_dim, config.num_pool_heads
        self.num_heads = heads
        self.mat_q = nn.Parameter(torch.zeros(1, heads, width // heads))
        self.mat_kv = StableLinear(config.text_channels, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width), persistent=False)
        self.proj = StableLinear(width, width)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """Return [P, C] for text [P, T, text_channels] and mask bool [P, T]."""
        bias = torch.cat((self.zero_k_bias, self.v_bias))
        kv = stable_linear(text, self.mat_kv.weight, bias).unflatten(-1, (2, self.num_heads, -1))
        keys, values = kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
        query = self.mat_q.transpose(0, 1).to(keys.dtype) * keys.shape[-1] ** -0.5
        scores = torch.matmul(query, keys.transpose(-2, -1)).float()
        weights = scores.masked_fill(~mask[:, None, None, :], -math.inf).softmax(dim=-1)
        return self.proj(torch.matmul(weights.to(values.dtype), values).flatten(1))
