"""The decoders' operations in Triton: channels last in memory, arithmetic in float32 in any dtype.

A program has a tile of whole pixels, so that it reads memory in one piece. How an image is cut into tiles
depends on its own size alone, and so do its numbers.

Legend: as in `operations`; in tiles [pixels, groups, channels of each group].
"""

# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096
"""Numbers of one tile."""

_PARTS = 1024
"""Most parts that the moments of an image are taken in: enough programs for any GPU, few to be merged."""


@triton.jit
def _places(groups: tl.constexpr, each: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr):
    """Return the channels [1, GROUPS, EACH] of a pixel, and which of them are real."""
    group, member = tl.arange(0, GROUPS)[None, :, None], tl.arange(0, EACH)[None, None, :]
    return group * each + member, (group < groups) & (member < each)


@triton.jit
def _part_moments(
    x,
    added,
    means,
    squares,
    pixels,
    groups: tl.constexpr,
    each: tl.constexpr,
    STEPS: tl.constexpr,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    EACH: tl.constexpr,
    ADDS: tl.constexpr,
):
    image, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    channel, real = _places(groups, each, GROUPS, EACH)
    channels: tl.constexpr = groups * each
    shift = tl.zeros((1, GROUPS, EACH), tl.float32)
    if ADDS:
        shift = tl.load(added + channel, mask=real, other=0.0).to(tl.float32)
    first = part.to(tl.int64) * STEPS * PIXELS
    end = tl.minimum(first + STEPS * PIXELS, pixels)
    pixel = first + tl.arange(0, PIXELS)[:, None, None]
    start = x + image * pixels * channels + channel
    inside = (pixel < end) & real
    values = tl.where(inside, tl.load(start + pixel * channels, mask=inside, other=0.0).to(tl.float32), 0.0)
    values = tl.where(inside, values + shift, 0.0)
    # Squares around the mean of the part's first tile: at most `STEPS` times those around its own mean.
    near = tl.sum(tl.sum(values, axis=0), axis=1) / (tl.minimum(end - first, PIXELS) * each)
    near = near[None, :, None]
    apart = tl.where(inside, values - near, 0.0)
    total, square = apart, apart * apart
    for step in range(1, STEPS):
        pixel = first + step * PIXELS + tl.arange(0, PIXELS)[:, None, None]
        inside = (pixel < end) & real
        values = tl.load(start + pixel * channels, mask=inside, other=0.0).to(tl.float32)
        apart = tl.where(inside, values + shift - near, 0.0)
        total += apart
        square += apart * apart
    count = ((end - first) * each).to(tl.float32)
    mean = tl.sum(tl.sum(total, axis=0), axis=1)[None, :, None] / count
    spread = tl.sum(tl.sum(square, axis=0), axis=1)[None, :, None] - mean * mean * count
    group = tl.arange(0, GROUPS)[None, :, None]
    target = (image * groups + group) * parts + part
    tl.store(means + target, near + mean, mask=group < groups)
    tl.store(squares + target, tl.maximum(spread, 0.0), mask=group < groups)


@triton.jit
def _group_scales(
    means,
    squares,
    added,
    weight,
    bias,
    scales,
    offsets,
    pixels,
    parts,
    size,
    eps,
    groups: tl.constexpr,
    each: tl.constexpr,
    PARTS: tl.constexpr,
    EACH: tl.constexpr,
    ADDS: tl.constexpr,
):
    row = tl.program_id(0)
    index = tl.arange(0, PARTS)
    inside = index < parts
    counts = tl.where(inside, tl.minimum(pixels - index * size, size) * each, 0).to(tl.float32)
    mean = tl.load(means + row * parts + index, mask=inside, other=0.0)
    square = tl.load(squares + row * parts + index, mask=inside, other=0.0)
    total = tl.sum(counts, axis=0)
    center = tl.sum(counts * mean, axis=0) / total
    # Moments around each part's own mean: sums of squares of large numbers would cancel.
    variance = tl.sum(square + counts * (mean - center) * (mean - center), axis=0) / total
    member = tl.arange(0, EACH)
    real = member < each
    channel = (row % groups) * each + member
    scale = tl.load(weight + channel, mask=real, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    if ADDS:
        center = center - tl.load(added + channel, mask=real, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32) - center * scale
    tl.store(scales + row * each + member, scale, mask=real)
    tl.store(offsets + row * each + member, offset, mask=real)


@triton.jit
def _scaled_silu(
    x, y, scales, offsets, pixels, channels: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):
    # Tiles first: of other axes a GPU has 65,535 at most.
    tile, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, CHANNELS)[None, :]
    scale = tl.load(scales + image * channels + channel, mask=channel < channels, other=0.0)
    offset = tl.load(offsets + image * channels + channel, mask=channel < channels, other=0.0)
    pixel = tile * PIXELS + tl.arange(0, PIXELS)[:, None]
    inside = (pixel < pixels) & (channel < channels)
    place = (image * pixels + pixel) * channels + channel
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * scale + offset
    tl.store(y + place, (values * tl.sigmoid(values)).to(y.dtype.element_ty), mask=inside)


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, *, groups: int, eps: float
) -> Tensor:
    """Return silu(group norm(x + added)), channels last; see `operations.group_norm_silu`."""
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = x.shape
    pixels, each = height * width, channels // groups
    size, sizes = triton.next_power_of_2(channels), {"groups": groups, "each": each}
    group_sizes = {"GROUPS": triton.next_power_of_2(groups), "EACH": triton.next_power_of_2(each)}
    step = max(1, _TILE // (group_sizes["GROUPS"] * group_sizes["EACH"]))
    tiles = triton.cdiv(pixels, step)
    steps = triton.next_power_of_2(triton.cdiv(tiles, _PARTS))
    parts = triton.cdiv(tiles, steps)
    partial = torch.empty((2, images * groups, parts), device=x.device, dtype=torch.float32)
    lines = torch.empty((2, images, channels), device=x.device, dtype=torch.float32)
    y = torch.empty_like(x)
    first, adds = (x, False) if added is None else (added, True)
    _part_moments[(images, parts)](
        *(x, first, partial[0], partial[1], pixels),
        **sizes,
        **group_sizes,
        STEPS=steps,
        PIXELS=step,
        ADDS=adds,
        num_warps=8,
    )
    _group_scales[(images * groups,)](
        *(partial[0], partial[1], first, weight, bias, lines[0], lines[1], pixels, parts, steps * step, eps),
        **sizes,
        PARTS=triton.next_power_of_2(parts),
        EACH=group_sizes["EACH"],
        ADDS=adds,
    )
    step = max(1, 2 * _TILE // size)
    _scaled_silu[(triton.cdiv(pixels, step), images)](
        *(x, y, lines[0], lines[1], pixels), channels=channels, PIXELS=step, CHANNELS=size, num_warps=8
    )
    return y


@triton.jit
def _interleaved(x, bias, y, height, width, channels, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    image = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = (pixel < 4 * height * width) & (channel < channels)
    row, column = pixel // (2 * width), pixel % (2 * width)
    low, right = row % 2, column % 2
    cell = (image * (height + 1) + row // 2 + low) * (width + 1) + column // 2 + right
    values = tl.load(x + (cell * 4 + 2 * low + right) * channels + channel, mask=inside, other=0.0).to(
        tl.float32
    )
    values += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    place = (image * 4 * height * width + pixel) * channels + channel
    tl.store(y + place, values.to(y.dtype.element_ty), mask=inside)


def interleaved(x: Tensor, bias: Tensor) -> Tensor:
    """Return the upsampled images; see `operations.interleaved`."""
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels = len(x), x.shape[1] // 4
    height, width = x.shape[2] - 1, x.shape[3] - 1
    size = triton.next_power_of_2(channels)
    step = max(1, _TILE // size)
    y = torch.empty(
        (images, channels, 2 * height, 2 * width),
        device=x.device,
        dtype=x.dtype,
        memory_format=torch.channels_last,
    )
    _interleaved[(triton.cdiv(4 * height * width, step), images)](
        *(x, bias, y, height, width, channels), PIXELS=step, CHANNELS=size, num_warps=8
    )
    return y
