"""Autocast where there is one."""

from __future__ import annotations

import contextlib

import torch


def autocast(
    device: torch.device, *, dtype: torch.dtype | None = None, enabled: bool = True
) -> contextlib.AbstractContextManager[object]:
    """Return `torch.autocast`; the meta device, on which costs are counted, has none."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype, enabled=enabled)
