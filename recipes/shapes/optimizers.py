"""What the stages share: Muon for matrices and AdamW for the rest, the rate, and the number format."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn


def muon_and_adamw(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    is_matrix: Callable[[str, nn.Parameter], bool],
    learning_rate: float,
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """Return Muon over the parameters that `is_matrix` names, if any, and AdamW over all others."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        (matrices if is_matrix(name, parameter) else others).append(parameter)
    adamw = torch.optim.AdamW(others, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.97))
    if not matrices:
        return [adamw]
    muon = torch.optim.Muon(
        matrices, lr=learning_rate, weight_decay=weight_decay, ns_steps=4, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adamw]


def warm_hold_decay(step: int, *, steps: int, warmup: int, decay_share: float) -> float:
    """Return the factor on the learning rate: up over `warmup` steps, 1, then down to 0 at the end."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (decay_share * steps))


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return the context for forward passes: bfloat16 where the device multiplies in it, else float32.

    Processors without AVX-512 imitate bfloat16, and take eight times as long as in float32.
    """
    has_it = device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast(device.type, torch.bfloat16, enabled=has_it)
