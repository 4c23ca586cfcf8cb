"""VAR models from files: a published name, or a model directory.

config.json                 `models/description.py`
transformer.safetensors     published names
tokenizer.safetensors       published names; only the way from tokens to images
classes.json                a list of names for each class, in the order of the labels

A published name reads `var_d*.pth` and the VQ-VAE's file as they are; its classes are ImageNet's.
"""

from __future__ import annotations

import torch

from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.models.description import ModelDescription
from ttsvar_ray.models.sampling import SamplingSettings
from ttsvar_ray.models.var.config import VarConfig, VqConfig
from ttsvar_ray.models.var.model import ClassNames, VarModel, imagenet_classes
from ttsvar_ray.models.var.tokenizer import VqDecoder
from ttsvar_ray.models.var.transformer import VarTransformer
from ttsvar_ray.models.weight_files import read_weights
from ttsvar_ray.models.weight_source import fetch_all
from ttsvar_ray.vision.checkpoints import KeyTable, build_loaded, on_meta, rename_keys

CLASSES = "classes.json"
_BLOCKS = "blocks."

TRANSFORMER_KEYS: KeyTable = (
    # Scale of each position and mask over scales, of training, and a bias that is zero in every model.
    (r"(.+\.)?(lvl_1L|attn_bias_for_masking|zero_k_bias)", None),
    (r"(.+)", r"\1"),
)
"""From the names in published files to those of `VarTransformer`."""

TOKENIZER_KEYS: KeyTable = (
    # The way from image to tokens, and the usage counts of training.
    (r"(encoder|quant_conv)\..+|quantize\.ema_vocab_hit_SV", None),
    (r"(.+)", r"\1"),
)
"""From the names in published files to those of `VqDecoder`."""


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
            rename_keys(
                read_weights(files["transformer"]), TRANSFORMER_KEYS, source=str(files["transformer"])
            ),
            device=device,
            source=str(files["transformer"]),
            narrow=_BLOCKS,
            dtype=dtype,
        ),
        tokenizer=build_loaded(
            lambda: VqDecoder(tokenizer_config),
            rename_keys(read_weights(files["tokenizer"]), TOKENIZER_KEYS, source=str(files["tokenizer"])),
            device=device,
            source=str(files["tokenizer"]),
        ),
        classes=ClassNames.read(files["classes"]) if "classes" in files else imagenet_classes(),
        sampling=sampling,
    )


def var_on_meta(description: ModelDescription, *, dtype: torch.dtype, sampling: SamplingSettings) -> VarModel:
    """Return a model on the meta device, with nameless classes."""
    config = VarConfig.from_json(description.transformer)
    with on_meta():
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
