"""The operations in Triton; imported where they are used, since Triton is on few machines.

Arithmetic is in float32 whatever the tensors' dtypes, and a row's numbers never depend on other rows.

Legend: as in `operations`.
"""

# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 8192
"""Numbers of one program of the group norm: enough programs for any GPU, few enough partial results."""


@triton.jit
def _chunk_addresses(row, chunk, groups, channels, pixels, CHUNK: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Return addresses and channels of one chunk of one group of one image, and which are inside."""
    image = (row // groups).to(tl.int64)
    group = row % groups
    each = channels // groups
    index = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = index < each * pixels
    if CHANNELS_LAST:
        channel = group * each + index % each
        offset = (index // each) * channels + channel
    else:
        channel = group * each + index // pixels
        offset = channel * pixels + index % pixels
    return image * channels * pixels + offset, channel, inside


@triton.jit
def _chunk_moments(
    x, means, squares, groups, channels, pixels, chunks, CHUNK: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    row, chunk = tl.program_id(0), tl.program_id(1)
    address, _, inside = _chunk_addresses(row, chunk, groups, channels, pixels, CHUNK, CHANNELS_LAST)
    values = tl.load(x + address, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum((channels // groups) * pixels - chunk * CHUNK, CHUNK)
    mean = tl.sum(values, axis=0) / count
    apart = tl.where(inside, values - mean, 0.0)
    tl.store(means + row * chunks + chunk, mean)
    tl.store(squares + row * chunks + chunk, tl.sum(apart * apart, axis=0))


@triton.jit
def _group_moments(
    means, squares, centers, spreads, total, chunks, eps, CHUNK: tl.constexpr, CHUNKS: tl.constexpr
):
    row = tl.program_id(0)
    index = tl.arange(0, CHUNKS)
    inside = index < chunks
    counts = tl.where(inside, tl.minimum(total - index * CHUNK, CHUNK), 0).to(tl.float32)
    mean = tl.load(means + row * chunks + index, mask=inside, other=0.0)
    square = tl.load(squares + row * chunks + index, mask=inside, other=0.0)
    center = tl.sum(counts * mean, axis=0) / total
    # Moments around each chunk's own mean: sums of squares of large numbers would cancel.
    variance = tl.sum(square + counts * (mean - center) * (mean - center), axis=0) / total
    tl.store(centers + row, center)
    tl.store(spreads + row, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def _normalize_silu(
    x,
    y,
    weight,
    bias,
    centers,
    spreads,
    groups,
    channels,
    pixels,
    CHUNK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    row, chunk = tl.program_id(0), tl.program_id(1)
    address, channel, inside = _chunk_addresses(row, chunk, groups, channels, pixels, CHUNK, CHANNELS_LAST)
    values = tl.load(x + address, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    values = (values - tl.load(centers + row)) * tl.load(spreads + row) * scale + shift
    tl.store(y + address, (values * tl.sigmoid(values)).to(y.dtype.element_ty), mask=inside)


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float) -> Tensor:
    """Return silu(group norm(x)); see `operations.group_norm_silu`."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    x = x if last else x.contiguous()
    images, channels = x.shape[:2]
    pixels = x[0, 0].numel()
    total = channels // groups * pixels
    rows, chunks = images * groups, triton.cdiv(total, _CHUNK)
    partial = torch.empty((2, rows, chunks), device=x.device, dtype=torch.float32)
    whole = torch.empty((2, rows), device=x.device, dtype=torch.float32)
    y = torch.empty_like(x)
    sizes = (groups, channels, pixels)
    _chunk_moments[(rows, chunks)](
        x, partial[0], partial[1], *sizes, chunks, CHUNK=_CHUNK, CHANNELS_LAST=last
    )
    _group_moments[(rows,)](
        partial[0],
        partial[1],
        whole[0],
        whole[1],
        total,
        chunks,
        eps,
        CHUNK=_CHUNK,
        CHUNKS=triton.next_power_of_2(chunks),
    )
    _normalize_silu[(rows, chunks)](
        x, y, weight, bias, whole[0], whole[1], *sizes, CHUNK=_CHUNK, CHANNELS_LAST=last
    )
    return y


@triton.jit
def _modulated_norm(x, scale, shift, y, tokens, width, scale_stride, eps, WIDTH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    row = token // tokens
    index = tl.arange(0, WIDTH)
    inside = index < width
    values = tl.load(x + token * width + index, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=0) / width
    apart = tl.where(inside, values - mean, 0.0)
    spread = 1.0 / tl.sqrt(tl.sum(apart * apart, axis=0) / width + eps)
    factor = 1.0 + tl.load(scale + row * scale_stride + index, mask=inside, other=0.0).to(tl.float32)
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
    _modulated_norm[(rows * tokens,)](
        x, scale, shift, y, tokens, width, scale.stride(0), eps, WIDTH=triton.next_power_of_2(width)
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
        x.contiguous(),
        update.contiguous(),
        gate,
        y,
        tokens,
        width,
        gate.stride(0),
        WIDTH=triton.next_power_of_2(width),
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
    half,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    ROTATES: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    row, token = place // tokens, place % tokens
    head = tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (pair < half)
    cosine, sine = 1.0, 0.0
    if ROTATES:
        cosine = tl.load(rope + (token * half + pair) * 2, mask=pair < half, other=0.0)
        sine = tl.load(rope + (token * half + pair) * 2 + 1, mask=pair < half, other=0.0)
    factor = tl.load(scale + head, mask=head < heads, other=0.0)
    for part in tl.static_range(2):
        start = qkv + ((place * 3 + part) * heads + head) * (2 * half) + 2 * pair
        even = tl.load(start, mask=inside, other=0.0).to(tl.float32)
        odd = tl.load(start + 1, mask=inside, other=0.0).to(tl.float32)
        length = tl.sqrt(tl.sum(even * even + odd * odd, axis=1))[:, None]
        length = tl.maximum(length, 1e-12)
        even, odd = even / length, odd / length
        turned, other = even * cosine - odd * sine, even * sine + odd * cosine
        out = keys
        if part == 0:
            turned, other = turned * factor, other * factor
            out = queries
        target = out + ((row * heads + head) * tokens + token) * (2 * half) + 2 * pair
        tl.store(target, turned.to(out.dtype.element_ty), mask=inside)
        tl.store(target + 1, other.to(out.dtype.element_ty), mask=inside)


def unit_rotated(qkv: Tensor, scale: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values; see `operations.unit_rotated`."""
    rows, tokens, _, heads, width = qkv.shape
    qkv = qkv.contiguous()
    queries = torch.empty((rows, heads, tokens, width), dtype=qkv.dtype, device=qkv.device)
    keys = torch.empty_like(queries)
    table = scale if rope is None else torch.view_as_real(rope)
    _unit_rotated[(rows * tokens,)](
        qkv,
        scale,
        table,
        queries,
        keys,
        tokens,
        heads,
        width // 2,
        HEADS=triton.next_power_of_2(heads),
        HALF=triton.next_power_of_2(width // 2),
        ROTATES=rope is not None,
    )
    return queries, keys, qkv[:, :, 2].transpose(1, 2)
