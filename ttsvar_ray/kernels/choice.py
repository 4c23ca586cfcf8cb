"""Which way operations are computed."""

from __future__ import annotations

import importlib.util

from ttsvar_ray.errors import ConfigurationError

KERNELS = ("auto", "plain", "fused")
"""`auto` is fused on a CUDA device where Triton is installed, else plain."""


def uses_fused(setting: str, device: str) -> bool:
    """Return whether operations on a device are fused.

    Args:
        setting: one of `KERNELS`.
        device: "cpu", "cuda", "meta", ...

    Raises:
        ConfigurationError: fused kernels are asked for where there are none.
    """
    if setting not in KERNELS:
        raise ConfigurationError(f"engine.kernels: expected one of {', '.join(KERNELS)}, got {setting!r}")
    installed = importlib.util.find_spec("triton") is not None
    possible = device.startswith("cuda") and installed
    if setting == "fused" and not possible:
        reason = (
            "Triton is not installed here" if device.startswith("cuda") else f"the model is on {device!r}"
        )
        raise ConfigurationError(
            f"engine.kernels: 'fused' needs a CUDA device and the package triton, but {reason}; "
            "use 'auto' or 'plain'"
        )
    return possible and setting != "plain"
