"""The operations: a plain way in torch each, and the fused one by name.

Legend: R rows, n tokens, C width, H heads, D head width; B images, c channels, P pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float, fused: bool
) -> Tensor:
    """Return silu(group norm(x)) of images [B, c, ...], in either memory order and in the dtype of x.

    Args:
        x: channels first or last in memory.
        weight, bias: [c].
        groups: divides c.
        eps: under the root.
        fused: statistics in float32 whatever the dtype; one reading for them, one for the values.
    """
    if fused:
        from ttsvar_ray.kernels import fused as kernels

        return kernels.group_norm_silu(x, weight, bias, groups=groups, eps=eps)
    return F.silu(F.group_norm(x, groups, weight, bias, eps))


def modulated_norm(
    x: Tensor, scale: Tensor, shift: Tensor, *, eps: float, dtype: torch.dtype, fused: bool
) -> Tensor:
    """Return (layer norm(x) without parameters) * (1 + scale) + shift of x [R, n, C].

    Args:
        x: the residual stream.
        scale, shift: float32 [R, 1, C], one for all tokens of a row.
        eps: under the root.
        dtype: of the fused result; the plain one is float32, and is rounded where it is used.
    """
    if fused:
        from ttsvar_ray.kernels import fused as kernels

        return kernels.modulated_norm(x, scale, shift, eps=eps, dtype=dtype)
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps) * (1 + scale) + shift


def gated_sum(x: Tensor, update: Tensor, gate: Tensor, *, fused: bool) -> Tensor:
    """Return x + update * gate, float32 [R, n, C]; gate float32 [R, 1, C]."""
    if fused:
        from ttsvar_ray.kernels import fused as kernels

        return kernels.gated_sum(x, update, gate)
    return x + update * gate


def unit_rotated(
    qkv: Tensor, scale: Tensor, rope: Tensor | None, *, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [R, H, n, D] in the dtype of `qkv`.

    Queries and keys get unit length and their rotation in float32: rounding there moves every score.

    Args:
        qkv: [R, n, 3, H, D].
        scale: float32 [H], on the queries.
        rope: rotations of the positions, complex64 [n, D / 2]; None rotates nothing.
    """
    if fused:
        from ttsvar_ray.kernels import fused as kernels

        return kernels.unit_rotated(qkv, scale, rope)
    qk = F.normalize(qkv[:, :, :2].float(), dim=-1)
    if rope is not None:
        qk = _rotate(qk.flatten(2, 3), rope).unflatten(2, (2, qkv.shape[3]))
    q, k = qk.unbind(dim=2)
    q = q * scale[:, None]
    return (
        q.to(qkv.dtype).transpose(1, 2),
        k.to(qkv.dtype).transpose(1, 2),
        qkv[:, :, 2].transpose(1, 2),
    )


def _rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs (0, 1), (2, 3), ... of x float32 [R, n, heads, D] by a table complex64 [n, D / 2]."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[:, None, :]).flatten(-2)
