"""Weights into modules: by name, strictly, with every difference reported at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from ttsvar_ray.models.weight_files import Weights
from ttsvar_ray.vision import checkpoints

CONSTANT_SUFFIX = ".zero_k_bias"
"""Buffers that are zero in every model: filled in when a file leaves them out."""

_Module = TypeVar("_Module", bound=nn.Module)


def build_loaded(
    make: Callable[[], _Module],
    weights: Weights,
    *,
    device: torch.device,
    source: str,
    narrow: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> _Module:
    """Return a module with given weights, in evaluation mode.

    Nothing is initialised only to be overwritten, and no weight is held twice: each goes to the device in
    its dtype alone, from files that are mapped, not read.

    Args:
        make: builds the module.
        weights: under the module's own names.
        device: where it computes.
        source: of the weights, for messages.
        narrow: prefix of the names that are held in `dtype`; the rest is float32.
        dtype: see `narrow`.
    """
    with torch.device("meta"):
        module = make()
    placed = {
        key: value.to(device, dtype if narrow and key.startswith(narrow) else torch.float32)
        for key, value in weights.items()
    }
    load_strict(module, placed, source=source)
    module.to(device)
    return module.requires_grad_(False).eval()


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
