"""Kernels that give the same sums every time they are given the same shapes."""

from __future__ import annotations

import os


def choose_repeatable_kernels() -> None:
    """Let this process's GPU libraries use no others; to be called before they are first used.

    An operation that has no such kernel is named in the log, and runs.
    """
    import torch
    import torch.utils.deterministic

    # Without it cuBLAS's workspace, and with it the order of a sum, may differ from call to call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Memory that is written before it is read needs no filling, which would cost time in every scale.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
