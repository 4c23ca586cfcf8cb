"""What the transformers of both families are made of, under the names of their published checkpoints.

Legend: S streams (1, or 2 with guidance: conditional, unconditional), R rows (streams x trajectories), n
tokens of this call, L tokens attended to, H heads, D head width, C = H * D.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttsvar_ray.kernels.operations import unit_rotated
from ttsvar_ray.models.row_stability import StableLinear, stable_attention, stable_linear
from ttsvar_ray.models.state import FreshTokens, KVCache, LayerCache

NORM_EPS = 1e-6
MAX_LOG_SCALE = math.log(100.0)
INITIAL_LOG_SCALE = math.log(4.0)


Extend = Callable[[Tensor, Tensor], LayerCache]
"""Takes up keys and values of one layer and returns them behind those of the scales before."""


def extending(
    cache: KVCache, fresh: FreshTokens, *, capacity: int | None
) -> tuple[KVCache, Callable[[int], Extend]]:
    """Return the cache after a scale, and how each layer takes up its part of it.

    Args:
        capacity: tokens to make room for, where room must be made; None keeps nothing of this scale, as at
            the last one, which nothing attends to.
    """
    kept = cache if capacity is None else cache.grown(fresh, capacity=capacity)
    return kept, extending_layers(kept, keeps=capacity is not None)


def extending_layers(cache: KVCache, *, keeps: bool) -> Callable[[int], Extend]:
    """Return how each layer takes up keys and values: written to the cache's last tokens, or only joined."""
    return lambda layer: functools.partial(cache.put if keeps else cache.joined, layer)


def plain_norm(x: Tensor) -> Tensor:
    """Layer norm without parameters over the last axis, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=NORM_EPS)


class FeedForward(nn.Module):
    """Two linears around a tanh-approximated GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = StableLinear(width, hidden)
        self.fc2 = StableLinear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class AdaptiveNorm(nn.Module):
    """The norm before the head, scaled and shifted by what the image is conditioned on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), StableLinear(width, 2 * width))

    def modulation(self, condition: Tensor) -> Tensor:
        """Return scale and shift [R, 2, C] of [R, C]."""
        return self.ada_lin(condition).unflatten(-1, (2, -1))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Return x [R, n, C], normed, under `modulation`."""
        scale, shift = modulation[:, None].unbind(dim=2)
        return plain_norm(x) * (1 + scale) + shift


class SelfAttention(nn.Module):
    """Attention of unit queries and keys with a learned scale per head, over all tokens so far."""

    fused = False
    zero_k_bias: Tensor

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, num_heads, 1, 1), INITIAL_LOG_SCALE))
        self.mat_qkv = StableLinear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width), persistent=False)
        self.proj = StableLinear(width, width)

    def qkv(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [R, H, n, D] of x [R, n, C]; queries carry the learned scale.

        Args:
            rope: rotations of their positions, complex64 [n, D / 2]; None rotates nothing.
        """
        weight = self.mat_qkv.weight
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias)).to(weight.dtype)
        qkv = stable_linear(x.to(weight.dtype), weight, bias).unflatten(-1, (3, self.num_heads, -1))
        scale = self.scale_mul_1H11.float().clamp(max=MAX_LOG_SCALE).exp().flatten()
        return unit_rotated(qkv, scale, rope, fused=self.fused)

    def forward(
        self, x: Tensor, extend: Extend, rope: Tensor | None = None, *, streams: int
    ) -> tuple[Tensor, LayerCache]:
        """Attend from the tokens of one scale, x [R, n, C], to all scales so far; return also their cache.

        Args:
            extend: the layer's cache: takes up their keys and values [S, B, H, n, D] and returns all.
            rope: see `qkv`.
            streams: S.
        """
        q, k, v = self.qkv(x, rope)
        full = extend(k.unflatten(0, (streams, -1)), v.unflatten(0, (streams, -1)))
        attended = stable_attention(q, full.keys.flatten(0, 1), full.values.flatten(0, 1), scale=1.0)
        return self.output(attended), full

    def output(self, attended: Tensor) -> Tensor:
        """Join the heads [R, H, n, D] and project to [R, n, C]."""
        return self.proj(attended.transpose(1, 2).flatten(2))
