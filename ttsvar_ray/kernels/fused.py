"""The transformers' operations in Triton; imported where they are used, since Triton is on few machines.

Arithmetic is in float32 whatever the tensors' dtypes, and a row's numbers never depend on other rows.

Legend: as in `operations`.
"""

# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _scaled_norm(
    x, scale, shift, y, tokens, width, scale_stride, eps, WIDTH: tl.constexpr, AROUND_ONE: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    row = token // tokens
    index = tl.arange(0, WIDTH)
    inside = index < width
    values = tl.load(x + token * width + index, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=0) / width
    apart = tl.where(inside, values - mean, 0.0)
    spread = 1.0 / tl.sqrt(tl.sum(apart * apart, axis=0) / width + eps)
    factor = tl.load(scale + row * scale_stride + index, mask=inside, other=0.0).to(tl.float32)
    if AROUND_ONE:
        factor += 1.0
    offset = tl.load(shift + row * scale_stride + index, mask=inside, other=0.0).to(tl.float32)
    tl.store(
        y + token * width + index, (apart * spread * factor + offset).to(y.dtype.element_ty), mask=inside
    )


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, *, eps: float, dtype: torch.dtype) -> Tensor:
    """Return the normed and modulated x; see `operations.modulated_norm`."""
    rows, tokens, width = x.shape
    x = x.contiguous()
    scale, shift = _rows_of(scale, width), _rows_of(shift, width)
    y = torch.empty_like(x, dtype=dtype)
    _scaled_norm[(rows * tokens,)](
        *(x, scale, shift, y, tokens, width, scale.stride(0), eps),
        WIDTH=triton.next_power_of_2(width),
        AROUND_ONE=True,
    )
    return y


def weighted_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, dtype: torch.dtype) -> Tensor:
    """Return the normed x; see `operations.weighted_norm`."""
    width = x.shape[-1]
    x = x.contiguous()
    tokens = x.numel() // width
    y = torch.empty_like(x, dtype=dtype)
    _scaled_norm[(tokens,)](
        *(x, weight, bias, y, tokens, width, 0, eps),
        WIDTH=triton.next_power_of_2(width),
        AROUND_ONE=False,
    )
    return y


def _rows_of(modulation: Tensor, width: int) -> Tensor:
    """Return [R, 1, C] as [R, C], each row in one piece, with one stride for all that are split alike."""
    rows = modulation.reshape(-1, width) if modulation.ndim != 3 else modulation[:, 0]
    return rows if rows.stride(1) == 1 else rows.contiguous()


@triton.jit
def _gated_sum(x, update, gate, y, tokens, width, gate_stride, WIDTH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, WIDTH)
    inside = index < width
    place = token * width + index
    factor = tl.load(gate + (token // tokens) * gate_stride + index, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(update + place, mask=inside, other=0.0).to(tl.float32) * factor
    tl.store(y + place, tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + added, mask=inside)


def gated_sum(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """Return x + update * gate; see `operations.gated_sum`."""
    rows, tokens, width = x.shape
    gate = _rows_of(gate, width)
    y = torch.empty((rows, tokens, width), dtype=torch.float32, device=x.device)
    _gated_sum[(rows * tokens,)](
        *(x.contiguous(), update.contiguous(), gate, y, tokens, width, gate.stride(0)),
        WIDTH=triton.next_power_of_2(width),
    )
    return y


_SUMS = 4096
"""Numbers of one program of a sum."""


@triton.jit
def _residual_sum(x, update, bias, y, total, width: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(update + place, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        values += tl.load(bias + place % width, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + place, values.to(y.dtype.element_ty), mask=inside)


def residual_sum(x: Tensor, update: Tensor, bias: Tensor | None) -> Tensor:
    """Return x + update + bias; see `operations.residual_sum`."""
    x, update = x.contiguous(), update.contiguous()
    y = torch.empty_like(x)
    _residual_sum[(triton.cdiv(x.numel(), _SUMS),)](
        *(x, update, x if bias is None else bias, y, x.numel(), x.shape[-1]),
        BLOCK=_SUMS,
        ADDS=bias is not None,
        num_warps=8,
    )
    return y


@triton.jit
def _unit_rotated(
    qkv,
    scale,
    rope,
    queries,
    keys,
    tokens,
    heads,
    width,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROTATES: tl.constexpr,
):
    HALF: tl.constexpr = WIDTH // 2
    place = tl.program_id(0).to(tl.int64)
    row, token = place // tokens, place % tokens
    head = tl.arange(0, HEADS)[:, None]
    index = tl.arange(0, WIDTH)[None, :]
    inside = (head < heads) & (index < width)
    factor = tl.load(scale + head, mask=head < heads, other=0.0)
    if ROTATES:
        # Whole rows, split in registers: loads of every other number reach a fraction of the bandwidth.
        table = tl.load(rope + token * width + index, mask=index < width, other=0.0)
        cosine, sine = tl.split(tl.reshape(table, (1, HALF, 2)))
    for part in tl.static_range(2):
        start = qkv + (place * 3 + part) * heads * width
        values = tl.load(start + head * width + index, mask=inside, other=0.0).to(tl.float32)
        length = tl.maximum(tl.sqrt(tl.sum(values * values, axis=1)), 1e-12)
        values = values / length[:, None]
        if ROTATES:
            even, odd = tl.split(tl.reshape(values, (HEADS, HALF, 2)))
            pairs = tl.join(even * cosine - odd * sine, even * sine + odd * cosine)
            values = tl.reshape(pairs, (HEADS, WIDTH))
        out = keys
        if part == 0:
            values = values * factor
            out = queries
        target = out + ((row * heads + head) * tokens + token) * width + index
        tl.store(target, values.to(out.dtype.element_ty), mask=inside)


def unit_rotated(qkv: Tensor, scale: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values; see `operations.unit_rotated`."""
    rows, tokens, _, heads, width = qkv.shape
    qkv = qkv.contiguous()
    queries = torch.empty((rows, heads, tokens, width), dtype=qkv.dtype, device=qkv.device)
    keys = torch.empty_like(queries)
    table = scale if rope is None else torch.view_as_real(rope)
    _unit_rotated[(rows * tokens,)](
        *(qkv, scale, table, queries, keys, tokens, heads, width),
        HEADS=triton.next_power_of_2(heads),
        WIDTH=triton.next_power_of_2(width),
        ROTATES=rope is not None,
    )
    return queries, keys, qkv[:, :, 2].transpose(1, 2)
