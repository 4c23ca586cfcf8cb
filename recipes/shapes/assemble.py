"""Last stage: trained weights become a model directory, the same kind as any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recipes.shapes.architecture import QUANTIZER, TOKENIZER, TRANSFORMER
from recipes.shapes.progress import load_checkpoint
from recipes.shapes.text import build_text_tokenizer
from recipes.shapes.transformer_stage import TextToBits
from ttsvar_ray.errors import InputError
from ttsvar_ray.models.infinity.directory import save_infinity
from ttsvar_ray.models.infinity.quantizer import Quantizer
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer


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
        name="shapes",
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
