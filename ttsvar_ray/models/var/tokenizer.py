"""The image side of VAR: codebook, residual accumulation over scales, and the decoder (VQ-VAE).

Module names are those of the published file, so weights load by name. Only what generation needs is here:
the encoder's weights are dropped when a file is read.
Source: VAR (arXiv 2404.02905) section 3.1, algorithms 1 and 2, and its released code.

Legend: B trajectories, d codebook_dim, V vocabulary, H x W the last scale, h x w the present one.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttsvar_ray.models.autoencoder import ConvolutionConfig, Decoder
from ttsvar_ray.models.row_stability import channels_first, pad_images
from ttsvar_ray.models.var.config import VqConfig
from ttsvar_ray.types import ScaleSchedule


class _SharedSmoothers(nn.Module):
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


class _Codebook(nn.Module):
    """The entries, and how the scales add up to a feature map."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.codebook_dim)
        self.quant_resi = _SharedSmoothers(config)

    def accumulate(self, summed: Tensor, tokens: Tensor, scale_index: int, schedule: ScaleSchedule) -> Tensor:
        """Return the feature map float32 [B, d, H, W] with one more scale.

        Args:
            summed: [B, d, H, W] of the scales before.
            tokens: int64 [B, h * w], entries drawn at this scale.
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
        self.quantize = _Codebook(config)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.codebook_dim, 3, padding=1)
        self.decoder = Decoder(
            ConvolutionConfig(
                codebook_dim=config.codebook_dim,
                base_channels=config.base_channels,
                multipliers=config.multipliers,
                num_res_blocks=config.num_res_blocks + 1,
                attends=True,
            )
        )

    def decode(self, summed: Tensor) -> Tensor:
        """Return images [B, 3, H*p, W*p] clamped to [-1, 1] of feature maps [B, d, H, W]."""
        images: Tensor = self.decoder(self.post_quant_conv(summed))
        return images.clamp(-1, 1)


def next_input(summed: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the next scale's input float32 [B, n, d]: the feature map averaged down to its size."""
    reduced = F.interpolate(channels_first(summed), size=size, mode="area")
    return reduced.flatten(2).transpose(1, 2)


def bits_to_tokens(bits: Tensor) -> Tensor:
    """Return entries int64 [B, n] of uint8 bits [B, n, bits], the most significant first."""
    count = bits.shape[-1]
    shifts = torch.arange(count - 1, -1, -1, device=bits.device)
    return (bits.to(torch.int64) << shifts).sum(dim=-1)
