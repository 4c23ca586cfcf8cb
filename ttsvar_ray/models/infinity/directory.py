"""An Infinity model directory: config.json, two weight files and a text encoder.

config.json                 `models/description.py`
transformer.safetensors     published names
tokenizer.safetensors       published names
text_encoder/               a transformers T5 encoder with its tokenizer
reward/                     optional, named by config.json
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.models.checkpoint import build_loaded, save_weights
from ttsvar_ray.models.description import (
    CONFIG_NAME,
    FORMAT_VERSION,
    TEXT_ENCODER,
    WEIGHT_FILES,
    ModelDescription,
)
from ttsvar_ray.models.infinity.config import FAMILY, Activation, Norm, TokenizerConfig, TransformerConfig
from ttsvar_ray.models.infinity.key_map import tokenizer_keys, transformer_keys
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.quantizer import Downsample, Quantizer, tokenizer_section
from ttsvar_ray.models.infinity.text_encoder import T5TextEncoder, with_positive_prompt
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.models.sampling import SamplingSettings
from ttsvar_ray.models.weight_files import Weights, read_weights
from ttsvar_ray.models.weight_source import fetch_all
from ttsvar_ray.types import ScaleSchedule

BLOCKS = "block_chunks."
"""Prefix of the weights that may be held in a narrow dtype."""

_QUANTIZER_KEYS = ("spatial_patchify", "gains", "downsample")


def parse_tokenizer(values: Mapping[str, Any], schedule: ScaleSchedule) -> tuple[TokenizerConfig, Quantizer]:
    """Read the tokenizer section of config.json.

    Raises:
        ConfigurationError: unknown or absent keys.
    """
    names = {field.name for field in dataclasses.fields(TokenizerConfig)}
    problems = [
        f"tokenizer.{key}: unknown key; remove it" for key in values if key not in {*names, *_QUANTIZER_KEYS}
    ]
    if "codebook_dim" not in values:
        problems.append("tokenizer.codebook_dim: missing; add it")
    if problems:
        raise ConfigurationError(problems)
    own = {key: value for key, value in values.items() if key in names}
    for key in ("encoder_multipliers", "decoder_multipliers"):
        if key in own:
            own[key] = tuple(own[key])
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
        transformer_keys(weights, text_max_length=config.text_max_length),
        device=device,
        source=source,
        narrow=BLOCKS,
        dtype=dtype,
    )


def build_tokenizer(
    config: TokenizerConfig, weights: Weights, *, device: torch.device, source: str
) -> ImageTokenizer:
    """Return a tokenizer in evaluation mode, in float32."""
    return build_loaded(lambda: ImageTokenizer(config), tokenizer_keys(weights), device=device, source=source)


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


def infinity_on_meta(
    description: ModelDescription, *, dtype: torch.dtype, sampling: SamplingSettings
) -> InfinityModel:
    """Return a model on the meta device, whose text encoder makes empty features."""
    # Chunks only name the blocks, and need not divide every depth.
    config = TransformerConfig.from_json({**description.transformer, "block_chunks": 1})
    tokenizer_config, quantizer = parse_tokenizer(description.tokenizer, description.scale_schedule)
    with torch.device("meta"):
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


def save_infinity(
    path: Path,
    *,
    name: str,
    transformer: InfinityTransformer,
    tokenizer: ImageTokenizer,
    quantizer: Quantizer,
    text_model: Any,
    text_tokenizer: Any,
    sampling: Mapping[str, Any],
    dtype: torch.dtype,
    plan: Mapping[str, Any] | None = None,
    reward: Mapping[str, Any] | None = None,
    features: Mapping[str, Any] | None = None,
) -> None:
    """Write a model directory that `load_infinity` reads.

    Args:
        path: the directory; made if absent, files of the same names are replaced.
        name: the model's name in output rows.
        transformer, tokenizer, quantizer: the trained model.
        text_model, text_tokenizer: a transformers `T5EncoderModel` and its tokenizer.
        sampling: guidance and temperature (one number or one per scale) and top_p.
        dtype: of all weights on disk.
        plan: the model's own search settings, named as in the job's `strategy` section.
        reward: {"name", "path" relative to the directory}.
        features: {"extractor", "backbone" relative to the directory}.
    """
    path.mkdir(parents=True, exist_ok=True)
    save_weights(transformer, path / WEIGHT_FILES["transformer"], dtype=dtype)
    save_weights(tokenizer, path / WEIGHT_FILES["tokenizer"], dtype=dtype)
    copy.deepcopy(text_model).to(dtype).save_pretrained(path / TEXT_ENCODER)
    text_tokenizer.save_pretrained(path / TEXT_ENCODER)
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "family": FAMILY,
        "name": name,
        "transformer": transformer.config.to_json(),
        "tokenizer": tokenizer_section(tokenizer.config, quantizer),
        "text": {"path": TEXT_ENCODER},
        "scale_schedule": [list(size) for size in transformer.scale_schedule],
        "sampling": dict(sampling),
    }
    for key, section in (("plan", plan), ("reward", reward), ("features", features)):
        if section is not None:
            config[key] = dict(section)
    # Last, so that an interrupted save is not taken for a model.
    (path / CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
