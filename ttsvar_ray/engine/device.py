"""What a process must know of its device: its name, threads, kernels and memory, and which exceptions cost a
prompt, ask for smaller micro-batches, or end the worker.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
_MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def prepare_process(device: str, *, threads: int, deterministic: bool) -> None:
    """Have this process compute as a job says; to be called before it computes.

    Args:
        device: as torch names it.
        threads: of torch on the host. Part of the guarantee: sums are split among them.
        deterministic: whether GPU libraries may use repeatable kernels alone.
    """
    import torch

    torch.set_num_threads(threads)
    if not device.startswith("cuda"):
        keep_freed_memory()
    elif deterministic:
        _choose_repeatable_kernels()


def keep_freed_memory() -> bool:
    """Have the C library keep the memory of freed tensors of up to 2 GiB; return whether it does.

    By itself glibc maps every large tensor anew, and the kernel fills its pages with zeros before they are
    written: two fifths of the time of a search of 512 x 512 pixels on a CPU (docs/performance.md). Where the
    environment sets glibc's own variables, theirs stay; other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or any(name in os.environ for name in _MALLOC_VARIABLES):
        return False
    most = 2**31 - 1
    return bool(mallopt(_M_MMAP_THRESHOLD, most) and mallopt(_M_TRIM_THRESHOLD, most))


def _choose_repeatable_kernels() -> None:
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


_NO_MEMORY = ("DefaultCPUAllocator: can't allocate", "STATUS_ALLOC_FAILED", "out of memory")
"""What torch's allocator of the host, cuBLAS and cuDNN, a GPU's driver (which loads a kernel when it is first
used), and Triton say in a RuntimeError of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller micro-batch could have worked (device or host memory)."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether the process cannot go on: after a CUDA fault every later call on the device fails."""
    torch = sys.modules.get("torch")
    if torch is None or is_out_of_memory(error):
        return False
    accelerator_error = getattr(torch, "AcceleratorError", None)
    return accelerator_error is not None and isinstance(error, accelerator_error)


def free_device_memory() -> None:
    """Hand kept blocks back to the device and the host, so that a smaller micro-batch starts unfragmented."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
