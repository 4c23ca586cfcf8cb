"""Keep a row's result independent of how many rows share its batch, on a CPU.

The CPU matmul kernels change their summation order when a matrix has very few rows (facts measured on
MKL and oneDNN: below 4 rows with one thread, below 12 with two), and convolutions when the batch holds one
image, or lies in memory in another order: channels first and channels last have kernels of their own. Rows
are padded, which costs little (few rows are cheap; images too large to be doubled are always decoded alone),
and images are brought into one order. With several threads, attention gives each thread a buffer of its own,
which may lie on another boundary and be added up otherwise: each row then asks alone.
On other devices, and when gradients are recorded, nothing is changed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_ROWS_PER_THREAD = 8

KERNEL_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
"""Environment variables that decide which kernels the libraries under torch take."""


def cpu_kernels() -> str:
    """Return what decides how this process rounds on a CPU: instruction set, processor, limits set."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.is_file() else []
    processor = names[0].partition(":")[2].strip() if names else "unknown processor"
    limits = [f"{name}={os.environ[name]}" for name in KERNEL_LIMITS if name in os.environ]
    return ", ".join((torch.backends.cpu.get_cpu_capability(), processor, *limits))


def _pads(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.is_grad_enabled()


def min_linear_rows() -> int:
    """Return the rows from which a CPU matmul computes each row alike, with the threads of this process."""
    return MIN_ROWS_PER_THREAD * torch.get_num_threads()


def stable_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply `F.linear` to x [..., in] with at least `min_linear_rows()` rows on a CPU."""
    rows = x.numel() // x.shape[-1]
    missing = min_linear_rows() - rows if _pads(x) else 0
    if missing <= 0:
        return F.linear(x, weight, bias)
    padded = F.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, missing))
    return F.linear(padded, weight, bias)[:rows].reshape(*x.shape[:-1], weight.shape[0])


class StableLinear(nn.Linear):
    """`nn.Linear` that casts its input to the weight's dtype and is row-stable on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return stable_linear(x.to(self.weight.dtype), self.weight, self.bias)


def stable_attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Apply `F.scaled_dot_product_attention`, on a CPU to each row as if it were alone; return [R, H, n, D].

    Args:
        q: queries [R, H, n, D].
        k: keys [R, H, L, D].
        v: values, as the keys.
        mask: [R or 1, 1, 1, L], false or minus infinity where nothing is attended to; None is all.
        scale: of the products; None is 1 / sqrt(D).
    """
    if not _pads(q) or torch.get_num_threads() == 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    masks = [None] * len(q) if mask is None else mask.expand(len(q), -1, -1, -1).split(1)
    rows = zip(q.split(1), k.split(1), v.split(1), masks, strict=True)
    return torch.cat([F.scaled_dot_product_attention(*row, scale=scale) for row in rows])


def channels_first(images: Tensor) -> Tensor:
    """Return images [B, C, H, W] in one memory order, channels first and row by row, whatever made them.

    Kernels that read neighbours (convolutions, averages) add in another order where channels lie last.
    """
    # Two steps: an axis of length 1 may keep any stride in `contiguous`, and kernels are chosen by strides.
    return images.contiguous().flatten().view(images.shape) if _pads(images) else images


def pad_images(images: Tensor) -> Tensor:
    """Return images [B, C, H, W] as a CPU convolution computes each alike, in any batch of up to 15.

    A lone image is doubled, so the result may have more rows than its argument; memory order as
    `channels_first`. From 16 images on, one thread computes convolutions of one pixel by another library.
    """
    if len(images) == 1 and _pads(images):
        images = images.expand(2, *images.shape[1:])
    return channels_first(images)


def autocast(
    device: torch.device, *, dtype: torch.dtype | None = None, enabled: bool = True
) -> contextlib.AbstractContextManager[object]:
    """Return `torch.autocast`; the meta device, on which costs are counted, has none."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype, enabled=enabled)
