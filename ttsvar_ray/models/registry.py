"""From a model's name or directory to the model."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.models.description import ModelDescription, read_description

if TYPE_CHECKING:
    import torch

    from ttsvar_ray.models.protocol import NextScaleModel

BUILT_IN = "shapes"
"""The model that ships in the package."""


def _infinity() -> Callable[..., NextScaleModel]:
    from ttsvar_ray.models.infinity.directory import load_infinity

    return load_infinity


FAMILIES: dict[str, Callable[[], Callable[..., NextScaleModel]]] = {"infinity": _infinity}
"""Family name in config.json -> function that imports and returns its loader."""


def model_path(name_or_path: str) -> Path:
    """Return the directory of a model.

    Raises:
        CheckpointError: neither the built-in name nor a directory.
    """
    if name_or_path == BUILT_IN:
        return Path(str(importlib.resources.files("ttsvar_ray"))) / "shapes" / "weights"
    path = Path(name_or_path)
    if not path.is_dir():
        raise CheckpointError(
            f"model {name_or_path!r}: no such directory; give {BUILT_IN!r} (built in) or a model directory"
        )
    return path


def describe_model(name_or_path: str) -> ModelDescription:
    """Read a model's config.json; touches no weights and no device.

    Raises:
        CheckpointError: not a model directory, or a family this version does not know.
    """
    description = read_description(model_path(name_or_path))
    if description.family not in FAMILIES:
        raise CheckpointError(
            f"{description.path}: unknown model family {description.family!r}; "
            f"expected one of {', '.join(sorted(FAMILIES))}"
        )
    return description


def resolve_device(device: str) -> torch.device:
    """Return the named device; "auto" is a GPU where there is one.

    Raises:
        ConfigurationError: not a device name, or a GPU that this machine does not have.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f'model.device: expected "auto", "cpu" or "cuda", got {device!r}') from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f'model.device: {device!r}, but torch sees no GPU here; use "auto" or "cpu"')
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the blocks; "auto" is bfloat16 on a GPU and float32 elsewhere."""
    import torch

    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in names:
        raise ConfigurationError(f'model.dtype: expected "auto", "float32" or "bfloat16", got {dtype!r}')
    return names[dtype]


def load_model(
    name_or_path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    guidance: float | Sequence[float] | None = None,
    temperature: float | Sequence[float] | None = None,
    top_p: float | None = None,
) -> NextScaleModel:
    """Load a model for generation.

    Args:
        name_or_path: "shapes" or a model directory.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "auto", "float32" or "bfloat16", of the transformer's blocks and KV cache.
        guidance, temperature: one number or one per scale; None keeps the model's own.
        top_p: in (0, 1]; None keeps the model's own.

    Raises:
        CheckpointError: the directory or its weights cannot be used.
        ConfigurationError: settings that do not fit the model or the machine.
    """
    from ttsvar_ray.models.sampling import SamplingSettings, per_scale

    description = describe_model(name_or_path)
    own, scales = description.sampling, description.num_scales
    sampling = SamplingSettings(
        guidance=own.guidance if guidance is None else per_scale("guidance", guidance, scales),
        temperature=own.temperature if temperature is None else per_scale("temperature", temperature, scales),
        top_p=own.top_p if top_p is None else float(top_p),
    )
    target = resolve_device(device)
    load = FAMILIES[description.family]()
    return load(description, device=target, dtype=resolve_dtype(dtype, target), sampling=sampling)
