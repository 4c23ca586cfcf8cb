"""Last stage: trained weights become a model directory, the same kind as any other."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from recipes.shapes.architecture import QUANTIZER, TOKENIZER, TRANSFORMER
from recipes.shapes.progress import load_checkpoint
from recipes.shapes.text import build_text_tokenizer
from recipes.shapes.transformer_stage import TextToBits
from ttsvar_ray.errors import InputError
from ttsvar_ray.models.description import CONFIG_NAME, FORMAT_VERSION, TEXT_ENCODER, WEIGHT_FILES
from ttsvar_ray.models.infinity.config import FAMILY
from ttsvar_ray.models.infinity.quantizer import Quantizer, tokenizer_section
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.infinity.transformer import InfinityTransformer


def _checkpoint(work_dir: Path, stage: str) -> dict[str, Any]:
    state = load_checkpoint(work_dir / f"{stage}.pt")
    if state is None:
        raise InputError(f"{work_dir / f'{stage}.pt'}: no checkpoint; run the {stage} stage first")
    return state


def trained_tokenizer(work_dir: Path) -> tuple[ImageTokenizer, Quantizer]:
    """Return the averaged tokenizer and the quantiser with its measured gains.

    The weights are rounded to float16, as shipped, so that later stages see what users will run.
    """
    state = _checkpoint(work_dir, "tokenizer")
    tokenizer = ImageTokenizer(TOKENIZER).eval().requires_grad_(False)
    tokenizer.load_state_dict({name: value.half().float() for name, value in state["average"].items()})
    return tokenizer, dataclasses.replace(QUANTIZER, gains=tuple(state["gains"]))


def assemble(
    work_dir: Path,
    model_dir: Path,
    *,
    name: str = "shapes",
    sampling: Mapping[str, Any],
    plan: Mapping[str, Any],
    reward: Mapping[str, Any] | None,
    features: Mapping[str, Any] | None,
) -> None:
    """Write config.json, weights and text encoder of the averaged model to `model_dir` (float16)."""
    tokenizer, quantizer = trained_tokenizer(work_dir)
    model = TextToBits()
    model.load_state_dict(_checkpoint(work_dir, "transformer")["average"])
    save_infinity(
        model_dir,
        name=name,
        transformer=model.transformer,
        tokenizer=tokenizer,
        quantizer=quantizer,
        text_model=model.text_encoder,
        text_tokenizer=build_text_tokenizer(TRANSFORMER.text_max_length),
        sampling=sampling,
        dtype=torch.float16,
        plan=plan,
        reward=reward,
        features=features,
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


def save_weights(module: nn.Module, path: Path, *, dtype: torch.dtype) -> None:
    """Write a module's weights to a .safetensors file in one dtype."""
    weights = module.state_dict()
    save_file({key: value.to("cpu", dtype).contiguous() for key, value in weights.items()}, path)
