"""The three attentions of Infinity: over earlier scales, to the text, and pooling the text.

Legend: R rows (streams x trajectories), n tokens of this call, L tokens attended to, H heads, D head width,
C = H * D, P texts, T padded text length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttsvar_ray.models.infinity.config import TransformerConfig
from ttsvar_ray.models.row_stability import StableLinear, stable_linear

ROPE_BASE = 10000.0
"""Of the rotary embedding: every scale covers the same picture, so positions are stretched to one grid."""

MAX_LOG_SCALE = math.log(100.0)
INITIAL_LOG_SCALE = math.log(4.0)
MIN_GROUP_TOKENS = 64


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


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs (0, 1), (2, 3), ... of x float32 [..., n, heads, head_dim] by `rope_table`."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[:, None, :]).flatten(-2)


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """Queries start..end of a teacher-forced sequence; they see the keys 0..end under `bias`.

    Attributes:
        start, end: token range of the queries; keys end at `end`.
        bias: float32 [end - start, end] with -inf where a key belongs to a later scale; None when the
            group is one scale, which sees all keys.
    """

    start: int
    end: int
    bias: Tensor | None


def query_groups(token_counts: Sequence[int]) -> tuple[QueryGroup, ...]:
    """Split a block-causal attention over scales into few groups of queries.

    A fine scale is a group of its own and needs no mask; coarse scales share one, since many tiny
    matmuls cost more than a few masked scores. Half of the full score matrix is never computed.
    """
    groups: list[QueryGroup] = []
    start = 0
    pending: list[int] = []
    for index, count in enumerate(token_counts):
        pending.append(count)
        last = index == len(token_counts) - 1
        if sum(pending) < MIN_GROUP_TOKENS and not last:
            continue
        end = start + sum(pending)
        bias = None
        if len(pending) > 1:
            visible = torch.repeat_interleave(start + torch.tensor(pending).cumsum(0), torch.tensor(pending))
            hidden = torch.arange(end)[None, :] >= visible[:, None]
            bias = torch.zeros(end - start, end).masked_fill_(hidden, -math.inf)
        groups.append(QueryGroup(start, end, bias))
        start, pending = end, []
    return tuple(groups)


def block_causal_attention(q: Tensor, k: Tensor, v: Tensor, groups: Sequence[QueryGroup]) -> Tensor:
    """Attend within and to earlier scales; q, k, v and result [R, H, L, D], softmax scale 1.

    Plain matmuls: on a CPU their bfloat16 backward is several times faster than the fused kernel's.
    """
    outputs = []
    for group in groups:
        scores = torch.matmul(q[:, :, group.start : group.end], k[:, :, : group.end].transpose(-2, -1))
        scores = scores.float() if group.bias is None else scores + group.bias.to(scores.device)
        outputs.append(torch.matmul(scores.softmax(dim=-1).to(v.dtype), v[:, :, : group.end]))
    return torch.cat(outputs, dim=2)


class SelfAttention(nn.Module):
    """Cosine attention with a learned scale per head, over the tokens of all scales so far."""

    zero_k_bias: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.num_heads = config.num_heads
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.num_heads, 1, 1), INITIAL_LOG_SCALE))
        self.mat_qkv = StableLinear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = StableLinear(width, width)

    def qkv(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [R, H, n, D] of x [R, n, C]; queries carry the learned scale."""
        weight = self.mat_qkv.weight
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = stable_linear(x.to(weight.dtype), weight, bias).unflatten(-1, (3, self.num_heads, -1))
        # Unit length and rotation in float32: rounding here moves every score.
        qk = rotate(F.normalize(qkv[:, :, :2].float(), dim=-1).flatten(2, 3), rope)
        q, k = qk.unflatten(2, (2, self.num_heads)).unbind(dim=2)
        q = q * self.scale_mul_1H11.float().clamp(max=MAX_LOG_SCALE).exp()[:, :, 0]
        dtype = qkv.dtype
        return (
            q.to(dtype).transpose(1, 2),
            k.to(dtype).transpose(1, 2),
            qkv[:, :, 2].transpose(1, 2),
        )

    def output(self, attended: Tensor) -> Tensor:
        """Join the heads [R, H, n, D] and project to [R, n, C]."""
        return self.proj(attended.transpose(1, 2).flatten(2))


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
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = StableLinear(width, width)

    def text_keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [P, H, T, D] of the projected text [P, T, C]."""
        weight = self.mat_kv.weight
        bias = torch.cat((self.zero_k_bias, self.v_bias))
        kv = stable_linear(text.to(weight.dtype), weight, bias).unflatten(-1, (2, self.num_heads, -1))
        return kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Return [R, n, C] for x [R, n, C], keys and values [R, H, T, D], mask bool [R, 1, 1, T]."""
        q = self.mat_q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if torch.is_grad_enabled():
            scores = torch.matmul(q * q.shape[-1] ** -0.5, keys.transpose(-2, -1)).float()
            weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
            attended = torch.matmul(weights.to(values.dtype), values)
        else:
            attended = F.scaled_dot_product_attention(q, keys.to(q.dtype), values.to(q.dtype), attn_mask=mask)
        return self.proj(attended.transpose(1, 2).flatten(2))


class TextPoolAttention(nn.Module):
    """One learned query per head pools a text of any length to one vector."""

    zero_k_bias: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, heads = config.embed_dim, config.num_pool_heads
        self.num_heads = heads
        self.mat_q = nn.Parameter(torch.empty(1, heads, width // heads))
        self.mat_kv = StableLinear(config.text_channels, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
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
