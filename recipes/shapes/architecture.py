"""Sizes of the built-in model: a small Infinity with thirteen scales that grow as the published ones do."""

from __future__ import annotations

from transformers import T5Config

from recipes.shapes.text import SPECIAL_TOKENS
from ttsvar_ray.models.infinity.config import Activation, Norm, TokenizerConfig, TransformerConfig
from ttsvar_ray.models.infinity.quantizer import Downsample, Quantizer
from ttsvar_ray.shapes.world import VOCABULARY
from ttsvar_ray.types import ScaleSchedule

IMAGE_SIZE = 48

SCHEDULE: ScaleSchedule = tuple((n, n) for n in (1, 1, 2, 2, 2, 3, 3, 4, 4, 6, 6, 8, 12))
"""344 tokens: 9 % of them by the seventh scale, 29 % by the tenth."""

TOKENIZER = TokenizerConfig(
    codebook_dim=16,
    base_channels=96,
    encoder_multipliers=(1,),
    decoder_multipliers=(1,),
    num_res_blocks=1,
    pixel_shuffle=4,
    norm=Norm.NONE,
    activation=Activation.RELU,
    normalize_latent=True,
)

QUANTIZER = Quantizer(codebook_dim=16, schedule=SCHEDULE, downsample=Downsample.AREA)
"""Without the gains: they are measured in training and live in the model's config.json."""

TRANSFORMER = TransformerConfig(
    depth=6,
    embed_dim=192,
    num_heads=6,
    block_chunks=2,
    bits_per_token=16,
    text_channels=128,
    text_max_length=16,
    rope_grid=(12, 12),
    pool_heads=6,
)


def text_encoder_config() -> T5Config:
    """Return the tiny T5 encoder's configuration; its vocabulary is the world's own."""
    return T5Config(
        vocab_size=len(SPECIAL_TOKENS) + len(VOCABULARY),
        d_model=TRANSFORMER.text_channels,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
