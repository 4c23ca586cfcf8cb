"""Which exceptions cost a prompt, which ask for smaller micro-batches, which end the worker."""

from __future__ import annotations

import sys


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


def describe(error: BaseException) -> str:
    """One line that names the exception and its message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
