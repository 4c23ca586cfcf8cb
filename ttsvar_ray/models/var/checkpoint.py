"""Published VAR files under the names of this package's modules.

`var_d{16,20,24,30,36}.pth` hold a flat transformer state dict, `vae_ch160v4096z32.pth` the VQ-VAE's. Names
are kept; what generation does not need is dropped by name, everything else must fit.
"""

from __future__ import annotations

from ttsvar_ray.models.infinity.checkpoint import Weights

DROPPED_TRANSFORMER_KEYS = ("lvl_1L", "attn_bias_for_masking")
"""Constant buffers of training: scale of each position, and the mask over scales."""

DROPPED_TOKENIZER_PREFIXES = ("encoder.", "quant_conv.", "quantize.ema_vocab_hit_SV")
"""The way from image to tokens, and training's usage counts."""


def var_transformer_keys(weights: Weights) -> Weights:
    """Return a published transformer state dict under the names of `VarTransformer`."""
    return {key: value for key, value in weights.items() if key not in DROPPED_TRANSFORMER_KEYS}


def var_tokenizer_keys(weights: Weights) -> Weights:
    """Return a published VQ-VAE state dict under the names of `VqDecoder`."""
    return {key: value for key, value in weights.items() if not key.startswith(DROPPED_TOKENIZER_PREFIXES)}
