"""The image tokenizer (BSQ-VAE): convolutional encoder and decoder around the quantiser.

Source: Infinity (arXiv 2412.04431) section 3.2 and its released tokenizers. Generalised for small models: a
pixel shuffle at the image side, no normalisation, ReLU, and latents normalised to the unit sphere.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ttsvar_ray.models.autoencoder import ConvolutionConfig, Decoder, Encoder
from ttsvar_ray.models.infinity.config import Activation, Norm, TokenizerConfig


class ImageTokenizer(nn.Module):
    """Encoder and decoder; the quantiser between them has no weights and is a value of its own."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        blocks = config.num_res_blocks
        self.encoder = Encoder(_convolutions(config, config.encoder_multipliers, blocks))
        self.decoder = Decoder(_convolutions(config, config.decoder_multipliers, blocks + 1))

    def encode(self, image: Tensor) -> Tensor:
        """Return features float32 [B, d, H, W] of an image [B, 3, H*p, W*p] in [-1, 1]."""
        features: Tensor = self.encoder(image)
        return F.normalize(features, dim=1) if self.config.normalize_latent else features

    def decode(self, features: Tensor) -> Tensor:
        """Return an image [B, 3, H*p, W*p] clamped to [-1, 1]."""
        image: Tensor = self.decoder(features)
        return image.clamp(-1, 1)


def _convolutions(
    config: TokenizerConfig, multipliers: tuple[int, ...], num_res_blocks: int
) -> ConvolutionConfig:
    return ConvolutionConfig(
        codebook_dim=config.codebook_dim,
        base_channels=config.base_channels,
        multipliers=multipliers,
        num_res_blocks=num_res_blocks,
        pixel_shuffle=config.pixel_shuffle,
        normalizes=config.norm is Norm.GROUP,
        activate=F.silu if config.activation is Activation.SWISH else F.relu,
    )
