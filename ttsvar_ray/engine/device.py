"""What a process must know of its device: its name, which kernels to take, and which exceptions cost a
prompt, ask for smaller micro-batches, or end the worker.
"""

from __future__ import annotations

import os
import platform
import sys


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


def device_name(*, on_gpu: bool) -> str:
    """Return what this process computes on."""
    # Whatever computes on a GPU has imported torch; a worker without it need not wait for it.
    torch = sys.modules.get("torch")
    if torch is not None and on_gpu and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    kernels = f", {torch.backends.cpu.get_cpu_capability()}" if torch is not None else ""
    return f"CPU ({platform.machine()}{kernels})"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller micro-batch could have worked (device or host memory)."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # The CPU allocator of torch raises a bare RuntimeError.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate" in str(error)


def is_device_lost(error: BaseException) -> bool:
    """Whether the process cannot go on: after a CUDA fault every later call on the device fails."""
    torch = sys.modules.get("torch")
    if torch is None or is_out_of_memory(error):
        return False
    accelerator_error = getattr(torch, "AcceleratorError", None)
    return accelerator_error is not None and isinstance(error, accelerator_error)


def free_device_memory() -> None:
    """Hand cached blocks back to the device, so that a smaller micro-batch starts unfragmented."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
