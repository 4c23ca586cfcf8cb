"""Weights into modules: by name, strictly, with every difference reported at once."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ttsvar_ray.models.infinity.key_map import map_tokenizer_keys, map_transformer_keys
from ttsvar_ray.models.weight_files import Weights, read_weights
from ttsvar_ray.vision import checkpoints

__all__ = ["Weights", "load_strict", "read_weights", "save_weights", "tokenizer_keys", "transformer_keys"]

CONSTANT_SUFFIX = ".zero_k_bias"
"""Buffers that are zero in every model: filled in when a file leaves them out."""


def transformer_keys(weights: Weights, *, text_max_length: int) -> Weights:
    """Return a published transformer state dict under the names and lengths of `InfinityTransformer`."""
    kept = {own: weights[name] for name, own in map_transformer_keys(weights).kept.items()}
    if "cfg_uncond" in kept:
        kept["cfg_uncond"] = fit_text_table(kept["cfg_uncond"], text_max_length)
    return kept


def tokenizer_keys(weights: Weights) -> Weights:
    """Return a published tokenizer state dict under the names of `ImageTokenizer`."""
    return {own: weights[name] for name, own in map_tokenizer_keys(weights).kept.items()}


def fit_text_table(table: Tensor, rows: int) -> Tensor:
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


def load_strict(module: nn.Module, weights: Weights, *, source: str) -> None:
    """Put weights into a module in place of its own, keeping their dtype; all names and shapes must fit.

    The module may have been built on the meta device.

    Raises:
        CheckpointError: lists missing, unexpected and misshapen names, all at once.
    """
    complete = dict(weights)
    for key, value in module.state_dict().items():
        if key.endswith(CONSTANT_SUFFIX) and key not in complete:
            complete[key] = torch.zeros(value.shape, dtype=_dtype_beside(key, complete))
    checkpoints.load_strict(module, complete, source=source, assign=True)


def check_fit(module: nn.Module, weights: Weights, *, source: str) -> None:
    """See that weights have the names and shapes of a module; constant buffers may be left out.

    Raises:
        CheckpointError: lists missing, unexpected and misshapen names, all at once.
    """
    checkpoints.check_fit(module, weights, source=source, optional=rf".*{re.escape(CONSTANT_SUFFIX)}")


def _dtype_beside(key: str, weights: Weights) -> torch.dtype:
    """Return the dtype of the bias that a constant one is joined with."""
    beside = weights.get(f"{key.removesuffix(CONSTANT_SUFFIX)}.v_bias")
    return torch.float32 if beside is None else beside.dtype


def save_weights(module: nn.Module, path: Path, *, dtype: torch.dtype) -> None:
    """Write a module's weights to a .safetensors file in one dtype, leaving out constant buffers."""
    weights = {
        key: value.detach().to("cpu", dtype).contiguous()
        for key, value in module.state_dict().items()
        if not key.endswith(CONSTANT_SUFFIX)
    }
    save_file(weights, path)
