"""A complete Infinity of a few thousand random weights, with a real T5 encoder and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from recipes.shapes.training_transformer import TrainingTransformer
from ttsvar_ray.models.infinity.config import Activation, Norm, TokenizerConfig, TransformerConfig
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.quantizer import Downsample, Quantizer
from ttsvar_ray.models.infinity.text import T5TextEncoder
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.sampling import SamplingSettings, per_scale
from ttsvar_ray.types import ScaleSchedule

REPEATED_SCHEDULE: ScaleSchedule = ((1, 1), (1, 1), (2, 2), (2, 2), (3, 3), (3, 3), (4, 4), (6, 6))
TEXT_LENGTH = 12
WORDS = [
    *("a", "an", "and", "two", "three", "red", "green", "blue", "circle", "square", "ring"),
    *("left", "right", "of", "above", "the"),
]

TOKENIZER_CONFIG = TokenizerConfig(
    codebook_dim=8,
    base_channels=16,
    encoder_multipliers=(1,),
    decoder_multipliers=(1,),
    num_res_blocks=1,
    pixel_shuffle=4,
    norm=Norm.NONE,
    activation=Activation.RELU,
    normalize_latent=True,
)


def tiny_config(bits_per_token: int = 8, text_length: int = TEXT_LENGTH) -> TransformerConfig:
    return TransformerConfig(
        depth=4,
        embed_dim=32,
        num_heads=4,
        block_chunks=2,
        bits_per_token=bits_per_token,
        text_channels=16,
        text_max_length=text_length,
        rope_grid=(6, 6),
        pool_heads=2,
        mlp_ratio=8.0,
    )


def tiny_transformer(
    seed: int = 0, schedule: ScaleSchedule = REPEATED_SCHEDULE, text_length: int = TEXT_LENGTH
) -> TrainingTransformer:
    """Return a transformer whose every weight matters: nothing is left at its quiet initial value."""
    torch.manual_seed(seed)
    transformer = TrainingTransformer(tiny_config(text_length=text_length), schedule)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.add_(noise * (0.6 if "scale_mul" in name else 0.25))
    return transformer.eval()


def text_parts(seed: int = 0) -> tuple[T5EncoderModel, PreTrainedTokenizerFast]:
    torch.manual_seed(seed)
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config).eval(), wrapped


def tiny_quantizer(schedule: ScaleSchedule = REPEATED_SCHEDULE) -> Quantizer:
    gains = tuple(1.0 - 0.05 * index for index in range(len(schedule)))
    return Quantizer(codebook_dim=8, schedule=schedule, gains=gains, downsample=Downsample.AREA)


def tiny_model(
    *,
    guidance: float | Sequence[float] = 3.0,
    top_p: float = 0.97,
    confidence: Sequence[float | None] = (),
    schedule: ScaleSchedule = REPEATED_SCHEDULE,
    text_length: int = TEXT_LENGTH,
) -> InfinityModel:
    transformer = tiny_transformer(schedule=schedule, text_length=text_length)
    torch.manual_seed(1)
    tokenizer = ImageTokenizer(TOKENIZER_CONFIG).eval()
    encoder, words = text_parts()
    scales = len(schedule)
    return InfinityModel(
        name="tiny",
        transformer=transformer,
        tokenizer=tokenizer,
        quantizer=tiny_quantizer(schedule),
        text_encoder=T5TextEncoder(encoder, words, text_length),
        sampling=SamplingSettings(
            guidance=per_scale("guidance", guidance, scales),
            temperature=per_scale("temperature", 2.0, scales),
            top_p=top_p,
            confidence=tuple(confidence),
        ),
    )
