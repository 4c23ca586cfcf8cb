"""What a CPU core does in a second, measured in a tenth of one: as it is now, with what else runs on it.

Processors differ by a factor of three, and busy ones by more; a profile in a file is of one of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ttsvar_ray.costs.profile import DeviceProfile

_SECONDS = 0.03
"""Of each kind of work: longer than a process runs at a time, so that what others take is in it."""


def measured_cpu(
    profile: DeviceProfile, *, threads: int, clock: Callable[[], float] = time.perf_counter
) -> DeviceProfile:
    """Return a CPU's profile with the rates of this processor in place of its own, where they weigh most.

    Sizes are those of a small model's blocks and decoder: small matrices run at other rates than large ones,
    and what lies between them, measured on a norm, is bound by more than memory.

    Args:
        profile: of a CPU.
        threads: that a worker has.
        clock: seconds.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            rates = _rates(clock)
    finally:
        torch.set_num_threads(before)
    sources = {**profile.sources, **dict.fromkeys(rates, "measured just now")}
    return dataclasses.replace(profile, name=f"{profile.name}, measured here", sources=sources, **rates)


def _rates(clock: Callable[[], float]) -> dict[str, Any]:
    def seconds(run: Callable[[], object]) -> float:
        run()
        begun, times, spent = clock(), 0, 0.0
        while spent < _SECONDS:
            run()
            times, spent = times + 1, clock() - begun
        return spent / times

    x, hidden, weight = torch.ones(256, 192), torch.ones(256, 768), torch.ones(768, 192)
    q, k = torch.ones(1, 6, 256, 32), torch.ones(1, 6, 512, 32)
    image, kernel = torch.ones(1, 64, 48, 48), torch.ones(64, 64, 3, 3)
    matmul = 2 * x.numel() * len(weight) / seconds(lambda: F.linear(x, weight))
    attention = 4 * q.numel() * k.shape[-2] / seconds(lambda: F.scaled_dot_product_attention(q, k, k))
    convolution = 2 * image.numel() * kernel[0].numel() / seconds(lambda: F.conv2d(image, kernel, padding=1))
    between = 2 * hidden.nbytes / seconds(lambda: F.layer_norm(hidden, hidden.shape[-1:]))
    return {
        "narrow_flops": matmul,
        "float32_flops": matmul,
        "attention_flops": attention,
        "conv_flops": convolution,
        "memory_bytes_per_second": between,
    }
