"""The image side of VAR: codebook, residual accumulation over scales, and the decoder (VQ-VAE).

Module names are those of the published file, so weights load by name. Only what generation needs is here:
the encoder's weights are dropped when a file is read.
Source: VAR (arXiv 2404.02905) section 3.1, algorithms 1 and 2, and its released code.

Legend: B trajectories, d codebook_dim, V vocabulary, H x W the last scale, h x w the present one.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttsvar_ray.models.row_stability import channels_first, pad_images
from ttsvar_ray.models.var.config import VqConfig
from ttsvar_ray.types import ScaleSchedule


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    """norm-swish-conv3x3 twice, plus the input (through a 1x1 where channels change)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        changes = in_channels != out_channels
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class SpatialAttention(nn.Module):
    """One head of attention over all positions, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(attended.transpose(1, 2).reshape(x.shape))


class Upscale(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention at the coarsest."""

    def __init__(self, channels: list[int], *, attends: bool, upscales: bool) -> None:
        super().__init__()
        pairs = itertools.pairwise(channels)
        self.block = nn.ModuleList(ResBlock(before, after) for before, after in pairs)
        self.attn = nn.ModuleList(SpatialAttention(after) for after in channels[1:] if attends)
        if upscales:
            self.upsample = Upscale(channels[-1])

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Middle(nn.Module):
    """Block, attention, block at the coarsest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = SpatialAttention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Decoder(nn.Module):
    """Features [B, d, H, W] to image [B, 3, H*p, W*p], not clamped."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        channels = config.base_channels * config.multipliers[-1]
        self.conv_in = nn.Conv2d(config.codebook_dim, channels, 3, padding=1)
        self.mid = Middle(channels)
        levels: list[Level] = []
        top = len(config.multipliers) - 1
        for index in reversed(range(top + 1)):
            out = config.base_channels * config.multipliers[index]
            widths = [channels, *[out] * (config.num_res_blocks + 1)]
            levels.insert(0, Level(widths, attends=index == top, upscales=index > 0))
            channels = out
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(channels)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.mid(self.conv_in(features))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class SharedSmoothers(nn.Module):
    """Holds the smoothing convolutions under their published names."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        channels = config.codebook_dim
        self.qresi_ls = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(config.num_smoothers)
        )

    def of_scale(self, scale_index: int, num_scales: int) -> nn.Module:
        """Return the convolution whose tick lies nearest to the scale's place in the schedule."""
        count = len(self.qresi_ls)
        # Four smoothers sit a third of a step from the ends, other counts half a step: as published.
        margin = (1 / 3 if count == 4 else 1 / 2) / count
        ticks = np.linspace(margin, 1 - margin, count)
        place = scale_index / max(1, num_scales - 1)
        return self.qresi_ls[int(np.argmin(np.abs(ticks - place)))]


class Codebook(nn.Module):
    """The entries, and how the scales add up to a feature map."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.codebook_dim)
        self.quant_resi = SharedSmoothers(config)

    def accumulate(self, summed: Tensor, tokens: Tensor, scale_index: int, schedule: ScaleSchedule) -> Tensor:
        """Return the feature map float32 [B, d, H, W] with one more scale.

        Args:
            summed: [B, d, H, W] of the scales before.
            tokens: int64 [B, h * w], entries drawn at this scale.
            scale_index: which scale.
            schedule: of the model.
        """
        height, width = schedule[scale_index]
        rows = tokens.shape[0]
        fresh = pad_images(self.embedding(tokens).float().transpose(1, 2).unflatten(2, (height, width)))
        if scale_index < len(schedule) - 1:
            fresh = F.interpolate(fresh, size=schedule[-1], mode="bicubic")
        smoother = self.quant_resi.of_scale(scale_index, len(schedule))
        part = self.config.smoothing
        return summed + (1 - part) * fresh[:rows] + part * smoother(pad_images(fresh))[:rows]


class VqDecoder(nn.Module):
    """What generation needs of the published VQ-VAE."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.config = config
        self.quantize = Codebook(config)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.codebook_dim, 3, padding=1)
        self.decoder = Decoder(config)

    def decode(self, summed: Tensor) -> Tensor:
        """Return images [B, 3, H*p, W*p] clamped to [-1, 1] of feature maps [B, d, H, W]."""
        return self.decoder(self.post_quant_conv(summed)).clamp(-1, 1)


def next_input(summed: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the next scale's input float32 [B, n, d]: the feature map averaged down to its size."""
    reduced = F.interpolate(channels_first(summed), size=size, mode="area")
    return reduced.flatten(2).transpose(1, 2)


def tokens_to_bits(tokens: Tensor, bits_per_token: int) -> Tensor:
    """Return uint8 [B, n, bits] of entries int64 [B, n]: the most significant bit first."""
    shifts = torch.arange(bits_per_token - 1, -1, -1, device=tokens.device)
    return ((tokens[..., None] >> shifts) & 1).to(torch.uint8)


def bits_to_tokens(bits: Tensor) -> Tensor:
    """Return entries int64 [B, n] of uint8 bits [B, n, bits], the most significant first."""
    count = bits.shape[-1]
    shifts = torch.arange(count - 1, -1, -1, device=bits.device)
    return (bits.to(torch.int64) << shifts).sum(dim=-1)
