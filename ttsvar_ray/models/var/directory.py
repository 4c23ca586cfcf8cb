"""VAR models from files: a published name, or a model directory.

config.json                 `models/description.py`
transformer.safetensors     published names
tokenizer.safetensors       published names; only the way from tokens to images
classes.json                a list of names for each class, in the order of the labels

A published name reads `var_d*.pth` and the VQ-VAE's file as they are; its classes are ImageNet's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.models.checkpoint import build_loaded, save_weights
from ttsvar_ray.models.description import (
    CONFIG_NAME,
    FORMAT_VERSION,
    WEIGHT_FILES,
    ModelDescription,
)
from ttsvar_ray.models.sampling import SamplingSettings
from ttsvar_ray.models.var.classes import ClassNames, imagenet_classes
from ttsvar_ray.models.var.config import FAMILY, VarConfig, VqConfig
from ttsvar_ray.models.var.model import VarModel
from ttsvar_ray.models.var.tokenizer import VqDecoder
from ttsvar_ray.models.var.transformer import VarTransformer
from ttsvar_ray.models.weight_files import Weights, read_weights
from ttsvar_ray.models.weight_source import fetch_all

CLASSES = "classes.json"
_BLOCKS = "blocks."

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


def load_var(
    description: ModelDescription, *, device: torch.device, dtype: torch.dtype, sampling: SamplingSettings
) -> VarModel:
    """Load a model: blocks in `dtype`, the small rest and the tokenizer in float32.

    Raises:
        CheckpointError: files missing, or weights that do not fit the description.
    """
    try:
        config = VarConfig.from_json(description.transformer)
        tokenizer_config = VqConfig.from_json(description.tokenizer)
    except ConfigurationError as error:
        raise CheckpointError(f"{description.source}: {error}") from error
    files = fetch_all(description.weights)
    return VarModel(
        name=description.name,
        transformer=build_loaded(
            lambda: VarTransformer(config, description.scale_schedule),
            var_transformer_keys(read_weights(files["transformer"])),
            device=device,
            source=str(files["transformer"]),
            narrow=_BLOCKS,
            dtype=dtype,
        ),
        tokenizer=build_loaded(
            lambda: VqDecoder(tokenizer_config),
            var_tokenizer_keys(read_weights(files["tokenizer"])),
            device=device,
            source=str(files["tokenizer"]),
        ),
        classes=ClassNames.read(files["classes"]) if "classes" in files else imagenet_classes(),
        sampling=sampling,
    )


def var_on_meta(description: ModelDescription, *, dtype: torch.dtype, sampling: SamplingSettings) -> VarModel:
    """Return a model on the meta device, with nameless classes."""
    config = VarConfig.from_json(description.transformer)
    with torch.device("meta"):
        transformer = VarTransformer(config, description.scale_schedule)
        tokenizer = VqDecoder(VqConfig.from_json(description.tokenizer))
    transformer.blocks.to(dtype)
    return VarModel(
        name=description.name,
        transformer=transformer.eval(),
        tokenizer=tokenizer.eval(),
        classes=ClassNames([()] * config.num_classes),
        sampling=sampling,
    )


def save_var(
    path: Path,
    *,
    model: VarModel,
    dtype: torch.dtype,
    plan: Mapping[str, Any] | None = None,
    reward: Mapping[str, Any] | None = None,
    features: Mapping[str, Any] | None = None,
) -> None:
    """Write a model directory that `load_var` reads.

    Args:
        path: the directory; made if absent, files of the same names are replaced.
        model: what to write; its sampling settings become the directory's.
        dtype: of all weights on disk.
        plan: the model's own search settings, named as in the job's `strategy` section.
        reward: {"name", "path" relative to the directory}.
        features: {"extractor", "backbone" relative to the directory}.
    """
    path.mkdir(parents=True, exist_ok=True)
    save_weights(model.transformer, path / WEIGHT_FILES["transformer"], dtype=dtype)
    save_weights(model.tokenizer, path / WEIGHT_FILES["tokenizer"], dtype=dtype)
    model.classes.write(path / CLASSES)
    sampling = model.sampling
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "family": FAMILY,
        "name": model.name,
        "transformer": model.transformer.config.to_json(),
        "tokenizer": model.tokenizer.config.to_json(),
        "files": {"classes": CLASSES},
        "scale_schedule": [list(size) for size in model.scale_schedule],
        "sampling": {
            "guidance": list(sampling.guidance),
            "temperature": list(sampling.temperature),
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        },
    }
    for key, section in (("plan", plan), ("reward", reward), ("features", features)):
        if section is not None:
            config[key] = dict(section)
    # Last, so that an interrupted save is not taken for a model.
    (path / CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
