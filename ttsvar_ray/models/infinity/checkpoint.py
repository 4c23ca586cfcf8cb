"""Weights into modules: by name, strictly, with every difference reported at once.

Names are those of the published checkpoints; this file undoes how these are wrapped:

| published form                                     | undone by                    |
| -------------------------------------------------- | ---------------------------- |
| one .pth/.pt file, flat                            | `read_weights`               |
| training checkpoint, nested trainer > gpt_fsdp     | `read_weights`               |
| folder of shards with an index json                | `read_weights`               |
| tokenizer file with `vae` and `ema`                | `read_weights` (takes `vae`) |
| buffers of older versions, quantiser masks         | dropped by `transformer_keys` and `tokenizer_keys` |
| convolutions and norms without `.conv` / `.norm`   | renamed by `tokenizer_keys`  |
| `cfg_uncond` longer than the text length used      | cut by `transformer_keys`    |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ttsvar_ray.errors import CheckpointError

Weights = dict[str, Tensor]

NESTINGS: tuple[tuple[str, ...], ...] = (("trainer", "gpt_fsdp"), ("vae",))
DROPPED_TRANSFORMER_KEYS = (
    "lvl_1L",
    "attn_bias_for_masking",
    "Infinity_visible_kvlen",
    "Infinity_invisible_qlen",
)
DROPPED_TOKENIZER_KEYS = ("quantizer.lfq.mask", "quantize.lfq.mask")
CONSTANT_SUFFIX = ".zero_k_bias"
"""Buffers that are zero in every model: filled in when a file leaves them out."""

LISTED_KEYS = 8


def read_weights(path: Path) -> Weights:
    """Read a .safetensors file, a .pth/.pt file, or a folder of shards; to CPU, executing nothing.

    Raises:
        CheckpointError: nothing there, not a weights file, or shards missing.
    """
    if path.is_dir():
        return _read_shards(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; expected weights (.safetensors, .pth, .pt) or a folder of shards"
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:
            raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(f"{path}: not readable as plain tensors (weights_only): {error}") from error
    for nesting in NESTINGS:
        inner = content
        for key in nesting:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            content = inner
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected names and tensors, found {type(content).__name__}")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _read_shards(folder: Path) -> Weights:
    indexes = sorted(folder.glob("*.index.json"))
    if len(indexes) != 1:
        raise CheckpointError(f"{folder}: expected one *.index.json naming the shards, found {len(indexes)}")
    placed: dict[str, str] = json.loads(indexes[0].read_text())["weight_map"]
    names = sorted(set(placed.values()))
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(f"{folder}: {len(absent)} of {len(names)} shards missing, first {absent[0]}")
    weights: Weights = {}
    for name in names:
        weights |= read_weights(folder / name)
    return weights


def transformer_keys(weights: Weights, *, text_max_length: int) -> Weights:
    """Return a published transformer state dict under the names and lengths of `InfinityTransformer`."""
    kept = {
        key: value for key, value in weights.items() if key.split(".")[-1] not in DROPPED_TRANSFORMER_KEYS
    }
    if "cfg_uncond" in kept:
        kept["cfg_uncond"] = kept["cfg_uncond"][:text_max_length]
    return kept


def tokenizer_keys(weights: Weights) -> Weights:
    """Return a published tokenizer state dict under the names of `ImageTokenizer`."""
    renamed: Weights = {}
    for key, value in weights.items():
        if key in DROPPED_TOKENIZER_KEYS:
            continue
        owner, _, leaf = key.rpartition(".")
        last = owner.rpartition(".")[2]
        above = owner.split(".")[-2:]
        if last in ("norm1", "norm2", "norm_out"):
            owner += ".norm"
        elif last in ("conv_in", "conv_out", "conv1", "conv2", "nin_shortcut") or (
            last == "conv" and above[0] in ("downsample", "upsample")
        ):
            owner += ".conv"
        renamed[f"{owner}.{leaf}"] = value
    return renamed


def load_strict(module: nn.Module, weights: Weights, *, source: str) -> None:
    """Put weights into a module in place of its own, keeping their dtype; all names and shapes must fit.

    The module may have been built on the meta device.

    Raises:
        CheckpointError: lists missing, unexpected and misshapen names, all at once.
    """
    expected = module.state_dict()
    complete = dict(weights)
    for key, value in expected.items():
        if key.endswith(CONSTANT_SUFFIX) and key not in complete:
            complete[key] = torch.zeros(value.shape)
    problems = []
    if missing := [key for key in expected if key not in complete]:
        problems.append(f"{len(missing)} missing: {_listed(missing)}")
    if unexpected := [key for key in complete if key not in expected]:
        problems.append(f"{len(unexpected)} unexpected: {_listed(unexpected)}")
    misshapen = [
        f"{key} (expected {tuple(value.shape)}, got {tuple(complete[key].shape)})"
        for key, value in expected.items()
        if key in complete and complete[key].shape != value.shape
    ]
    if misshapen:
        problems.append(f"{len(misshapen)} of another shape: {_listed(misshapen)}")
    if problems:
        raise CheckpointError(
            f"{source}: weights do not fit the architecture in config.json: " + "; ".join(problems)
        )
    module.load_state_dict(complete, strict=True, assign=True)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:LISTED_KEYS])
    return shown if len(names) <= LISTED_KEYS else f"{shown}, ... and {len(names) - LISTED_KEYS} more"


def save_weights(module: nn.Module, path: Path, *, dtype: torch.dtype) -> None:
    """Write a module's weights to a .safetensors file in one dtype, leaving out constant buffers."""
    weights = {
        key: value.detach().to("cpu", dtype).contiguous()
        for key, value in module.state_dict().items()
        if not key.endswith(CONSTANT_SUFFIX)
    }
    save_file(weights, path)
