"""Heads of linear layers without activations, as aesthetic predictors publish them, from their file alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttsvar_ray.errors import CheckpointError


def load_linear_head(path: Path, *, prefix: str, indices: Sequence[int], input_width: int) -> nn.Sequential:
    """Read a head (weights only): `{prefix}.{index}.weight` and `.bias`, ending in one output.

    The whole is one affine map; it is kept as layers so that it rounds as published.

    Args:
        path: the published file.
        prefix: of its keys.
        indices: places of the linear layers. The published network has dropouts between them; a file with
            other places has other layers there, so it is refused.
        input_width: of the embedding that the head reads.

    Raises:
        CheckpointError: no such file, other layers, or widths that do not fit.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected the published head of this reward")
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    expected = {f"{prefix}.{index}.{part}" for index in indices for part in ("weight", "bias")}
    if not isinstance(content, Mapping) or set(content) != expected:
        found = sorted(content) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path}: expected exactly the keys {sorted(expected)}, got {found}")
    weights: list[Tensor] = [content[f"{prefix}.{index}.weight"].float() for index in indices]
    widths = [input_width, *(len(weight) for weight in weights)]
    for index, weight, width in zip(indices, weights, widths, strict=False):
        if weight.ndim != 2 or weight.shape[1] != width:
            raise CheckpointError(
                f"{path}: {prefix}.{index}.weight: expected {width} columns, got shape {tuple(weight.shape)}"
            )
    if widths[-1] != 1:
        raise CheckpointError(f"{path}: expected one output, got {widths[-1]}")
    head = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    head.load_state_dict(
        {
            f"{place}.{part}": content[f"{prefix}.{index}.{part}"].float()
            for place, index in enumerate(indices)
            for part in ("weight", "bias")
        }
    )
    return head.eval().requires_grad_(False)
