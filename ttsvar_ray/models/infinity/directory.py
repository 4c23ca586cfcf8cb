"""An Infinity model directory: config.json, two weight files and a text encoder.

config.json                 `models/description.py`
transformer.safetensors     published names
tokenizer.safetensors       published names
text_encoder/               a transformers T5 encoder with its tokenizer
reward/                     optional, named by config.json
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.models.description import ModelDescription, section_values
from ttsvar_ray.models.infinity.config import Activation, Norm, TokenizerConfig, TransformerConfig
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.quantizer import Downsample, Quantizer
from ttsvar_ray.models.infinity.text import T5TextEncoder, with_positive_prompt
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.models.sampling import SamplingSettings
from ttsvar_ray.models.weight_files import Weights, read_weights
from ttsvar_ray.models.weight_source import fetch_all
from ttsvar_ray.types import ScaleSchedule
from ttsvar_ray.vision.checkpoints import KeyTable, build_loaded, on_meta, rename_keys

BLOCKS = "block_chunks."
"""Prefix of the weights that may be held in a narrow dtype."""

TRANSFORMER_KEYS: KeyTable = (
    # Masks of training, which follow from the schedule, and a bias that is zero in every model.
    (r"(.+\.)?(lvl_1L|attn_bias_for_masking|Infinity_(visible_kv|invisible_q)len|zero_k_bias)", None),
    (r"(.+)", r"\1"),
)
"""From the names in published files to those of `InfinityTransformer`."""

TOKENIZER_KEYS: KeyTable = (
    # Powers of two that number the codes, the constant 0, all codes in a table: bits are kept as bits here.
    # The quantiser has no weights; a projection or norm of its own would be one, and is not dropped.
    (r"quantizer?(\.lfq)?\.(mask|zero|codebook)", None),
    # Convolutions and norms are named with and without a wrapper around them.
    (r"(.+\.)?(norm1|norm2|norm_out)\.norm\.(\w+)", r"\1\2.\3"),
    (r"(.+\.)?(conv_in|conv_out|conv1|conv2|nin_shortcut)\.conv\.(\w+)", r"\1\2.\3"),
    (r"(.+\.)?(downsample|upsample)\.conv\.conv\.(\w+)", r"\1\2.conv.\3"),
    (r"(.+)", r"\1"),
)
"""From the names in published files to those of `ImageTokenizer`."""

_QUANTIZER_KEYS = ("spatial_patchify", "gains", "downsample")


def parse_tokenizer(values: Mapping[str, Any], schedule: ScaleSchedule) -> tuple[TokenizerConfig, Quantizer]:
    """Read the tokenizer section of config.json.

    Raises:
        ConfigurationError: unknown or absent keys.
    """
    own = section_values(TokenizerConfig, values, section="tokenizer", beside=_QUANTIZER_KEYS)
    own["norm"] = Norm(own.get("norm", Norm.GROUP))
    own["activation"] = Activation(own.get("activation", Activation.SWISH))
    quantizer = Quantizer(
        codebook_dim=own["codebook_dim"],
        schedule=schedule,
        spatial_patchify=bool(values.get("spatial_patchify", False)),
        gains=tuple(float(gain) for gain in values.get("gains", ())),
        downsample=Downsample(values.get("downsample", Downsample.BILINEAR)),
    )
    return TokenizerConfig(**own), quantizer


def transformer_weights(published: Weights, config: TransformerConfig, *, source: str) -> Weights:
    """Return a published transformer's weights under the names and lengths of `InfinityTransformer`."""
    kept = rename_keys(published, TRANSFORMER_KEYS, source=source)
    if "cfg_uncond" in kept:
        kept["cfg_uncond"] = _fit_text_table(kept["cfg_uncond"], config.text_max_length)
    return kept


def _fit_text_table(table: Tensor, rows: int) -> Tensor:
    """Return the learned "no text" features [rows, channels] from a table of another length.

    A longer table is cut. A shorter one goes on with the values that the published code initialises it with
    (a normal of standard deviation 1.2, cut at 2, over the root of the channels, from seed 0), as its loader
    leaves them there.
    """
    if table.ndim != 2 or table.shape[0] >= rows:
        return table[:rows]
    channels = table.shape[1]
    initial = torch.empty(rows, channels)
    generator = torch.Generator().manual_seed(0)
    nn.init.trunc_normal_(initial, std=1.2, generator=generator)
    tail = initial[table.shape[0] :] / math.sqrt(channels)
    return torch.cat((table, tail.to(table.dtype)))


def build_transformer(
    config: TransformerConfig,
    schedule: ScaleSchedule,
    weights: Weights,
    *,
    device: torch.device,
    dtype: torch.dtype,
    source: str,
) -> InfinityTransformer:
    """Return a transformer in evaluation mode: blocks in `dtype`, the small rest in float32."""
    return build_loaded(
        lambda: InfinityTransformer(config, schedule),
        transformer_weights(weights, config, source=source),
        device=device,
        source=source,
        narrow=BLOCKS,
        dtype=dtype,
    )


def build_tokenizer(
    config: TokenizerConfig, weights: Weights, *, device: torch.device, source: str
) -> ImageTokenizer:
    """Return a tokenizer in evaluation mode, in float32."""
    own = rename_keys(weights, TOKENIZER_KEYS, source=source)
    return build_loaded(lambda: ImageTokenizer(config), own, device=device, source=source)


def load_infinity(
    description: ModelDescription,
    *,
    device: torch.device,
    dtype: torch.dtype,
    sampling: SamplingSettings,
) -> InfinityModel:
    """Load a model: from its directory, or from published files.

    The text encoder runs in float32, or in float16 beside bfloat16 blocks on a GPU, as published.

    Raises:
        CheckpointError: files missing, or weights that do not fit the description.
    """
    try:
        config = TransformerConfig.from_json(description.transformer)
        tokenizer_config, quantizer = parse_tokenizer(description.tokenizer, description.scale_schedule)
    except ConfigurationError as error:
        raise CheckpointError(f"{description.source}: {error}") from error
    # All first: what is missing should be said before minutes of loading.
    files = fetch_all(description.weights)
    text_dtype = torch.float16 if device.type == "cuda" and dtype == torch.bfloat16 else torch.float32
    return InfinityModel(
        name=description.name,
        transformer=build_transformer(
            config,
            description.scale_schedule,
            read_weights(files["transformer"]),
            device=device,
            dtype=dtype,
            source=str(files["transformer"]),
        ),
        tokenizer=build_tokenizer(
            tokenizer_config,
            read_weights(files["tokenizer"]),
            device=device,
            source=str(files["tokenizer"]),
        ),
        quantizer=quantizer,
        text_encoder=T5TextEncoder.load(
            files["text_encoder"],
            max_length=config.text_max_length,
            device=device,
            dtype=text_dtype,
        ),
        sampling=sampling,
        prepare_text=with_positive_prompt if description.positive_prompt else str,
    )


class _NoText:
    """Features of the right shape for any text."""

    def __init__(self, config: TransformerConfig) -> None:
        self._size = (config.text_max_length, config.text_channels)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        lens = torch.empty(len(texts), dtype=torch.long, device="meta")
        return torch.empty(len(texts), *self._size, device="meta"), lens

    def cuts(self, text: str) -> bool:
        return False


def infinity_on_meta(
    description: ModelDescription, *, dtype: torch.dtype, sampling: SamplingSettings
) -> InfinityModel:
    """Return a model on the meta device, whose text encoder makes empty features."""
    # Chunks only name the blocks, and need not divide every depth.
    config = TransformerConfig.from_json({**description.transformer, "block_chunks": 1})
    tokenizer_config, quantizer = parse_tokenizer(description.tokenizer, description.scale_schedule)
    with on_meta():
        transformer = InfinityTransformer(config, description.scale_schedule)
        tokenizer = ImageTokenizer(tokenizer_config)
    transformer.set_block_dtype(dtype)
    return InfinityModel(
        name=description.name,
        transformer=transformer.eval(),
        tokenizer=tokenizer.eval(),
        quantizer=quantizer,
        text_encoder=_NoText(config),
        sampling=sampling,
    )
