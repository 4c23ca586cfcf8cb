"""The convolutions of both families' image tokenizers, under the names of their published checkpoints.

Coarse levels have more channels; every level but the coarsest halves or doubles the image's side.

Legend: B images, d channels of the feature map, H x W its cells, p pixels a cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttsvar_ray.kernels.operations import group_norm_silu, interleaved, residual_sum
from ttsvar_ray.models.row_stability import stable_attention


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionConfig:
    """Architecture of an encoder or a decoder.

    Attributes:
        codebook_dim: channels d of the feature map.
        base_channels: channels at multiplier 1; a multiple of 24 or 32 where blocks normalise by groups.
        multipliers: per level, image side first; one level less than this many halvings of the image.
        num_res_blocks: per level.
        pixel_shuffle: side of the pixel blocks folded into channels at the image side.
        normalizes: whether blocks normalise by groups.
        attends: whether blocks at the coarsest level attend over all positions.
    """

    codebook_dim: int
    base_channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    pixel_shuffle: int = 1
    normalizes: bool = True
    activate: Callable[[Tensor], Tensor] = F.silu
    attends: bool = False

    def make_norm(self, channels: int) -> nn.Module:
        """Return the normalisation of so many channels."""
        if not self.normalizes:
            return nn.Identity()
        return nn.GroupNorm(32 if channels % 32 == 0 else 24, channels, eps=1e-6)


def _activated(
    config: ConvolutionConfig, norm: nn.Module, x: Tensor, *, fused: bool, added: Tensor | None = None
) -> Tensor:
    """Return the normed and activated x + added [B, c, H, W]; added [c], None for nothing."""
    if isinstance(norm, nn.GroupNorm) and config.activate is F.silu:
        how = {"groups": norm.num_groups, "eps": norm.eps, "fused": fused}
        return group_norm_silu(x, norm.weight, norm.bias, added=added, **how)  # type: ignore[arg-type]
    return config.activate(norm(x if added is None else x + added[:, None, None]))


def upsampling_weight(weight: Tensor) -> Tensor:
    """Return a convolution 3 x 3 of an image upsampled to double by nearest neighbours as one of the image.

    Above and below each other lie equal pixels, so for every parity of the result's row two of the three
    rows of weights meet the same one and are summed; columns likewise.

    Args:
        weight: [out, in, 3, 3].

    Returns:
        float32 [2 * 2 * out, in, 2, 2], for rows of even and odd index, columns of even and odd index;
        `interleaved` makes the image of what it gives under a padding of 1.
    """
    rows = _parities(weight.float(), -2)
    return _parities(rows, -1).transpose(0, 1).flatten(0, 2)


def _parities(weight: Tensor, axis: int) -> Tensor:
    """Return [2, ...], an axis of 3 summed to 2 as an even and an odd place meet it."""
    first, middle, last = weight.split(1, dim=axis)
    return torch.stack((torch.cat((first, middle + last), axis), torch.cat((first + middle, last), axis)))


class _ResBlock(nn.Module):
    """norm-activation-conv3x3 twice, plus the input (through a 1x1 where channels change)."""

    fused = False

    def __init__(self, config: ConvolutionConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.config = config
        self.norm1 = config.make_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = config.make_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        changes = in_channels != out_channels
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return self._fused(x)
        h = self.conv1(_activated(self.config, self.norm1, x, fused=False))
        return self.conv2(_activated(self.config, self.norm2, h, fused=False)) + self.nin_shortcut(x)

    def _fused(self, x: Tensor) -> Tensor:
        """Compute the same with every bias added by the kernel that reads the convolution's result.

        Convolutions on a GPU add theirs in a pass of its own.
        """
        h = F.conv2d(_activated(self.config, self.norm1, x, fused=True), self.conv1.weight, padding=1)
        h = _activated(self.config, self.norm2, h, fused=True, added=self.conv1.bias)
        h = F.conv2d(h, self.conv2.weight, padding=1)
        bias = self.conv2.bias
        if isinstance(self.nin_shortcut, nn.Conv2d):
            assert bias is not None
            assert self.nin_shortcut.bias is not None
            x, bias = F.conv2d(x, self.nin_shortcut.weight), bias + self.nin_shortcut.bias
        x, h = (images.permute(0, 2, 3, 1) for images in (x, h))
        return residual_sum(x, h, bias, fused=True).permute(0, 3, 1, 2)


class _SpatialAttention(nn.Module):
    """One head of attention over all positions, plus the input."""

    def __init__(self, config: ConvolutionConfig, channels: int) -> None:
        super().__init__()
        self.norm = config.make_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        attended = stable_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(attended.transpose(1, 2).reshape(x.shape))


class _Downscale(nn.Module):
    """Halve by a strided convolution, padded at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Upscale(nn.Module):
    """Double by nearest neighbours, then convolve."""

    fused = False
    folded: Tensor | None
    """`upsampling_weight` of the convolution, made once."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.register_buffer("folded", None, persistent=False)

    def fold(self) -> None:
        """Make `folded`, while weights are as they were loaded: sums of rounded ones are rounded twice."""
        if self.folded is None:
            self.folded = upsampling_weight(self.conv.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            assert self.folded is not None
            assert self.conv.bias is not None
            return interleaved(F.conv2d(x, self.folded, padding=1), self.conv.bias, fused=True)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """The blocks of one resolution, and the change to the next where there is one."""

    downsample: _Downscale
    upsample: _Upscale

    def __init__(self, config: ConvolutionConfig, in_channels: int, out_channels: int, *, attends: bool):
        super().__init__()
        widths = [in_channels, *[out_channels] * config.num_res_blocks]
        self.block = nn.ModuleList(_ResBlock(config, *pair) for pair in itertools.pairwise(widths))
        self.attn = nn.ModuleList(_SpatialAttention(config, out_channels) for _ in self.block if attends)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return x


class _Middle(nn.Module):
    """Two residual blocks at the coarsest resolution, with attention between them where there is one."""

    def __init__(self, config: ConvolutionConfig, channels: int) -> None:
        super().__init__()
        self.block_1 = _ResBlock(config, channels, channels)
        self.attn_1 = _SpatialAttention(config, channels) if config.attends else nn.Identity()
        self.block_2 = _ResBlock(config, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Image [B, 3, H*p, W*p] in [-1, 1] to features [B, d, H, W]."""

    def __init__(self, config: ConvolutionConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.base_channels
        self.conv_in = nn.Conv2d(3 * config.pixel_shuffle**2, channels, 3, padding=1)
        self.down = nn.ModuleList()
        coarsest = len(config.multipliers) - 1
        for index, multiplier in enumerate(config.multipliers):
            out_channels = config.base_channels * multiplier
            attends = config.attends and index == coarsest
            level = _Level(config, channels, out_channels, attends=attends)
            if index < coarsest:
                level.downsample = _Downscale(out_channels)
            self.down.append(level)
            channels = out_channels
        self.mid = _Middle(config, channels)
        self.norm_out = config.make_norm(channels)
        self.conv_out = nn.Conv2d(channels, config.codebook_dim, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(image, self.config.pixel_shuffle))
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)  # type: ignore[operator]
        return self.conv_out(self.config.activate(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Features [B, d, H, W] to image [B, 3, H*p, W*p], not clamped."""

    fused = False

    def __init__(self, config: ConvolutionConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.base_channels * config.multipliers[-1]
        self.conv_in = nn.Conv2d(config.codebook_dim, channels, 3, padding=1)
        self.mid = _Middle(config, channels)
        levels: list[_Level] = []
        coarsest = len(config.multipliers) - 1
        for index in reversed(range(coarsest + 1)):
            out_channels = config.base_channels * config.multipliers[index]
            attends = config.attends and index == coarsest
            level = _Level(config, channels, out_channels, attends=attends)
            if index > 0:
                level.upsample = _Upscale(out_channels)
            levels.insert(0, level)
            channels = out_channels
        self.up = nn.ModuleList(levels)
        self.norm_out = config.make_norm(channels)
        self.conv_out = nn.Conv2d(channels, 3 * config.pixel_shuffle**2, 3, padding=1)

    def set_fused(self, fused: bool, dtype: torch.dtype) -> None:
        """Choose fused kernels or plain ones.

        Fused ones hold the weights in `dtype`, channels last in memory, as activations then are throughout;
        weights stay so.
        """
        for module in self.modules():
            if hasattr(module, "fused"):
                module.fused = fused  # type: ignore[assignment]
            if fused and isinstance(module, _Upscale):
                module.fold()
        if fused:
            self.to(dtype=dtype)
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, features: Tensor) -> Tensor:
        x = self.mid(self.conv_in(features.to(self.conv_in.weight.dtype)))
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)  # type: ignore[operator]
        x = self.conv_out(_activated(self.config, self.norm_out, x, fused=self.fused))
        return F.pixel_shuffle(x, self.config.pixel_shuffle)


MOST_DECODE_ROWS = 8
"""Bounds the decoder's memory, and is below what `row_stability.pad_images` promises."""

DECODE_PIXELS = 9 * 2**18
"""Pixels decoded at once: two images of about 1024 x 1024, at 2.7 GB each in bfloat16. More of them would
not be faster: one already fills a GPU."""

CPU_DECODE_PIXELS = 2**16
"""The same on a CPU, where several images of 256 x 256 fall out of its caches: 470 ms each in eights, 300 ms
alone (a decoder of 32 channels, one thread), while images of 48 x 48 gain a third from being eight."""


def decode_rows(image_height: int, image_width: int, *, device: str = "cuda") -> int:
    """Return how many images of a size are decoded in one call, 1 to `MOST_DECODE_ROWS`."""
    pixels = CPU_DECODE_PIXELS if device == "cpu" else DECODE_PIXELS
    return max(1, min(MOST_DECODE_ROWS, pixels // (image_height * image_width)))


def to_uint8(image: Tensor) -> Tensor:
    """Turn [B, 3, H, W] in [-1, 1] into uint8 RGB [B, H, W, 3]; truncates, as published."""
    return ((image.float() + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
