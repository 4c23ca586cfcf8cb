"""The image tokenizer (BSQ-VAE): convolutional encoder and decoder around the quantiser.

Module names are the published checkpoints' own, so weights load by name. Source: Infinity
(arXiv 2412.04431) section 3.2 and its released tokenizers. Generalised for small models: a pixel
shuffle at the image side, no normalisation, ReLU, and latents normalised to the unit sphere.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ttsvar_ray.models.infinity.config import Activation, Norm, TokenizerConfig


class Conv(nn.Module):
    """A named wrapper: published keys read `X.conv.weight`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class GroupNormalize(nn.Module):
    """A named wrapper: published keys read `X.norm.weight`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = 32 if channels % 32 == 0 else 24
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def _norm(config: TokenizerConfig, channels: int) -> nn.Module:
    return GroupNormalize(channels) if config.norm is Norm.GROUP else nn.Identity()


def _activate(config: TokenizerConfig, x: Tensor) -> Tensor:
    return F.silu(x) if config.activation is Activation.SWISH else F.relu(x)


class ResBlock(nn.Module):
    """norm-activation-conv3x3 twice, plus the input (through a 1x1 where channels change)."""

    def __init__(self, config: TokenizerConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.config = config
        self.norm1 = _norm(config, in_channels)
        self.conv1 = Conv(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(config, out_channels)
        self.conv2 = Conv(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = Conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_activate(self.config, self.norm1(x)))
        h = self.conv2(_activate(self.config, self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Downscale(nn.Module):
    """Halve by a strided convolution, padded at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upscale(nn.Module):
    """Double by nearest neighbours, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, and the change to the next where there is one."""

    downsample: Downscale
    upsample: Upscale

    def __init__(self, blocks: list[ResBlock]) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class Middle(nn.Module):
    """Two residual blocks at the coarsest resolution."""

    def __init__(self, config: TokenizerConfig, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(config, channels, channels)
        self.block_2 = ResBlock(config, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class Encoder(nn.Module):
    """Image [B, 3, H*p, W*p] in [-1, 1] to features [B, d, H, W]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.base_channels
        self.conv_in = Conv(3 * config.pixel_shuffle**2, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for index, multiplier in enumerate(config.encoder_multipliers):
            out_channels = config.base_channels * multiplier
            blocks = []
            for _ in range(config.num_res_blocks):
                blocks.append(ResBlock(config, channels, out_channels))
                channels = out_channels
            level = Level(blocks)
            if index < len(config.encoder_multipliers) - 1:
                level.downsample = Downscale(channels)
            self.down.append(level)
        self.mid = Middle(config, channels)
        self.norm_out = _norm(config, channels)
        self.conv_out = Conv(channels, config.codebook_dim, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(image, self.config.pixel_shuffle))
        for level in self.down:
            assert isinstance(level, Level)
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        x = self.conv_out(_activate(self.config, self.norm_out(self.mid(x))))
        return F.normalize(x, dim=1) if self.config.normalize_latent else x


class Decoder(nn.Module):
    """Features [B, d, H, W] to image [B, 3, H*p, W*p], not clamped."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        multipliers = config.decoder_multipliers
        channels = config.base_channels * multipliers[-1]
        self.conv_in = Conv(config.codebook_dim, channels, 3, padding=1)
        self.mid = Middle(config, channels)
        levels: list[Level] = []
        for index in reversed(range(len(multipliers))):
            out_channels = config.base_channels * multipliers[index]
            blocks = []
            for _ in range(config.num_res_blocks + 1):
                blocks.append(ResBlock(config, channels, out_channels))
                channels = out_channels
            level = Level(blocks)
            if index > 0:
                level.upsample = Upscale(channels)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(config, channels)
        self.conv_out = Conv(channels, 3 * config.pixel_shuffle**2, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.mid(self.conv_in(features))
        for level in reversed(self.up):
            assert isinstance(level, Level)
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        x = self.conv_out(_activate(self.config, self.norm_out(x)))
        return F.pixel_shuffle(x, self.config.pixel_shuffle)


class ImageTokenizer(nn.Module):
    """Encoder and decoder; the quantiser between them has no weights and is a value of its own."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, image: Tensor) -> Tensor:
        """Return features float32 [B, d, H, W] of an image [B, 3, H*p, W*p] in [-1, 1]."""
        return self.encoder(image)

    def decode(self, features: Tensor) -> Tensor:
        """Return an image [B, 3, H*p, W*p] clamped to [-1, 1]."""
        return self.decoder(features).clamp(-1, 1)
