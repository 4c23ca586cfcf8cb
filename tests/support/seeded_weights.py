"""Weights that any implementation can rebuild from names and shapes alone.

Reference vectors of large networks stay small this way: the outputs are stored, the weights are not.
Raw Philox words are used, whose sequence NumPy guarantees, not its distributions, which may change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def seeded_tensor(name: str, shape: Sequence[int], *, amplitude: float = 1.0) -> Tensor:
    """Return float32 of `shape`, uniform in [-amplitude, amplitude), a function of name and shape."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    words = np.random.Philox(key=key).random_raw(math.prod(shape))
    unit = (words >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0
    return torch.from_numpy((unit * amplitude).astype(np.float32)).reshape(tuple(shape))


def seeded_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return a state dict: matrices scaled by their inputs, norms around one, small biases."""
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("scale_mul_1H11"):
            weights[name] = math.log(4.0) + seeded_tensor(name, shape, amplitude=0.5)
        elif "norm" in name and name.endswith("weight") and len(shape) == 1:
            weights[name] = 1.0 + seeded_tensor(name, shape, amplitude=0.3)
        elif len(shape) >= 2:
            fan_in = math.prod(shape[1:])
            weights[name] = seeded_tensor(name, shape, amplitude=math.sqrt(3.0 / fan_in))
        else:
            weights[name] = seeded_tensor(name, shape, amplitude=0.1)
    return weights
