"""Which way operations are computed."""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.kernels.operations import (
    gated_sum,
    group_norm_silu,
    interleaved,
    modulated_norm,
    residual_sum,
    unit_rotated,
    weighted_norm,
)

KERNELS = ("auto", "plain", "fused")
"""`auto` is fused on a CUDA device where Triton is installed and a trial agrees with the plain way."""

TRIAL_TOLERANCE = 0.05
"""Of a trial in bfloat16, relative to the largest number: wrong results are off by more."""

_log = logging.getLogger(__name__)


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
    if setting == "auto" and possible:
        problem = trial(device)
        if problem is not None:
            _log.warning("engine.kernels: auto takes the plain kernels: %s", problem)
        return problem is None
    return possible and setting == "fused"


@functools.cache
def trial(device: str) -> str | None:
    """Compute each operation both ways on a device, once a process; return what is wrong, None if nothing."""
    generator = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    image, qkv = random(1, 64, 16, 16).bfloat16(), random(2, 4, 3, 2, 64).bfloat16()
    x, rope = random(2, 4, 128), torch.polar(torch.ones(4, 32), torch.ones(4, 32)).to(device)
    modulation, norm = random(2, 1, 3, 128).unbind(2), random(2, 64).bfloat16()
    weights = random(2, 128)

    def results(*, fused: bool) -> list[torch.Tensor]:
        return [
            group_norm_silu(image, norm[0], norm[1], groups=32, eps=1e-6, fused=fused, added=norm[0]),
            interleaved(image, norm[0, :16], fused=fused),
            weighted_norm(x, *weights, eps=1e-6, dtype=torch.bfloat16, fused=fused),
            residual_sum(x, x.bfloat16(), weights[0], fused=fused),
            modulated_norm(x, *modulation[:2], eps=1e-6, dtype=torch.bfloat16, fused=fused),
            gated_sum(x, x.bfloat16(), modulation[2], fused=fused),
            *unit_rotated(qkv, torch.ones(2, device=device), rope, fused=fused),
        ]

    try:
        pairs = list(zip(results(fused=True), results(fused=False), strict=True))
    except Exception as error:  # noqa: BLE001 - a compiler may raise anything, and the plain way is as good
        return (
            f"a trial of the fused ones raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        )
    apart = max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)
    return None if apart <= TRIAL_TOLERANCE else f"a trial of the fused ones was off by {apart:.2g}"
