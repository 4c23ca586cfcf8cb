"""The most bytes of tensors alive at once while a function runs, on any device, the meta device included."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ttsvar_ray.costs.count import Trace


def peak_live_bytes(body: Callable[[], object]) -> int:
    """Return the peak of what `body` allocates; tensors that exist already are not counted."""
    with Trace() as live, torch.inference_mode():
        body()
    return live.peak_bytes
