"""A network that looks at images, in batches whose rows do not depend on each other.

Comes in: uint8 images, or pixels. Goes out: one row of float32 numbers per image. Rewards and feature
extractors both rest on it.

Shape legend: B rows, C channels, H W pixels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ttsvar_ray.types import Float32Array, Precision, UInt8Array
from ttsvar_ray.vision.pixels import PixelRecipe, to_device
from ttsvar_ray.vision.published import BATCH_ROWS

KERNEL_STEP = 64
"""Values in one step of an elementwise CPU kernel: four vectors of sixteen float32."""
HEAD_BLOCK = 32
"""Rows of a head are computed in multiples of this: a multiple of every block that CPU kernels use."""

REPEATABLE_ROWS = 8
"""Rows of every batch on an accelerator that is limited to repeatable kernels: about as many images as a
population has, because what is missing is padded."""

Forward = Callable[[Tensor, Sequence[Any]], Tensor]
"""Pixels [B, 3, size, size] and what goes with each image, to a tensor with one row per image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How images become batches.

    Attributes:
        most_rows: of a batch.
        multiple_of: on a CPU, what the rows of a batch are a multiple of; None on an accelerator, where they
            are a power of two.
        is_fixed: whether every batch has the same number of rows.
    """

    most_rows: int
    multiple_of: int | None = None
    is_fixed: bool = False

    def padded(self, rows: int) -> int:
        """Return to how many rows a batch of 1 to `most_rows` images is padded."""
        if self.is_fixed:
            return self.most_rows
        if self.multiple_of is not None:
            return max(2, rows + -rows % self.multiple_of)
        return min(max(2, 1 << (rows - 1).bit_length()), self.most_rows)


class ImageNetwork:
    """Runs a network over images, on one device.

    A row's result does not depend on the other rows. On CPUs a lone image is doubled, since convolutions of
    one image round differently; batches are padded to a multiple of `cpu_rows`, see `rows_without_tail`. On
    accelerators kernels are chosen by shape: batches are padded to the next power of two, so that few shapes
    occur, and where a process is limited to repeatable kernels (`engine.deterministic`) all to the same
    number of rows. Pixels always reach the network in one memory layout: kernels are chosen by that too.

    Args:
        recipe: from images to pixels.
        tf32: whether a GPU may round the factors of float32 products (`Precision.TF32`).
        cpu_rows: on a CPU, batches are padded to a multiple of this.
    """

    batch_rows = BATCH_ROWS

    def __init__(
        self,
        *,
        recipe: PixelRecipe,
        device: str,
        dtype: torch.dtype = torch.float32,
        tf32: bool = False,
        cpu_rows: int = 1,
    ) -> None:
        self.recipe = recipe
        self.device = torch.device(device)
        self.dtype = dtype
        self.tf32 = tf32
        self.cpu_rows = cpu_rows

    def preprocess(self, images: UInt8Array) -> Tensor:
        """Return float32 [n, 3, size, size] normalised pixels; `images` uint8 RGB [n, height, width, 3]."""
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ValueError(
                f"images: expected uint8 [n, height, width, 3], got {images.dtype} {images.shape}"
            )
        return self.recipe.apply(images, self.device)

    def run(self, forward: Forward, pixels: Tensor, contents: Sequence[Any] | None = None) -> Float32Array:
        """Return float32 [n, ...]: `forward` over the pixels of n >= 1 images, without gradients.

        Args:
            forward: what is computed of one batch.
            pixels: float32 [n, 3, size, size], from `preprocess`.
            contents: n things that go with the images.
        """
        with_each = [None] * len(pixels) if contents is None else list(contents)
        step = self._batching().most_rows
        results = [
            self._run_batch(forward, pixels[start : start + step], with_each[start : start + step])
            for start in range(0, len(pixels), step)
        ]
        return np.concatenate(results)

    def _run_batch(self, forward: Forward, pixels: Tensor, contents: list[Any]) -> Float32Array:
        rows = len(pixels)
        pixels, wanted = to_device(pixels, self.device), self._batching().padded(rows)
        if wanted > rows:
            pixels = torch.cat([pixels, pixels[-1:].expand(wanted - rows, -1, -1, -1)])
            contents = contents + [contents[-1]] * (wanted - rows)
        with torch.inference_mode(), self.arithmetic():
            # Convolutions round by how their input lies in memory, so it always lies channels first.
            results = forward(pixels.to(self.dtype).contiguous(), contents)
        array: Float32Array = results[:rows].float().cpu().numpy()
        return array

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Have float32 products computed as this network has them, and as before afterwards."""
        switch = torch.backends.cuda.matmul
        before = switch.allow_tf32
        switch.allow_tf32 = self.tf32
        try:
            yield
        finally:
            switch.allow_tf32 = before

    def _batching(self) -> Batching:
        on_cpu = self.device.type == "cpu"
        repeatable = not on_cpu and torch.are_deterministic_algorithms_enabled()
        return Batching(
            most_rows=min(self.batch_rows, REPEATABLE_ROWS) if repeatable else self.batch_rows,
            multiple_of=self.cpu_rows if on_cpu else None,
            is_fixed=repeatable,
        )


def torch_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of weights and activations."""
    dtype: torch.dtype = getattr(torch, "float32" if precision is Precision.TF32 else precision.value)
    return dtype


_Module = TypeVar("_Module", bound=nn.Module)


def settle(network: _Module, device: torch.device, dtype: torch.dtype) -> _Module:
    """Prepare a loaded network for looking: on its device, in memory of its own, without gradients.

    Weights that are still views of a mapped file lie wherever the file has them, and CPU kernels round by
    alignment: the same weights out of another file would give another last bit.
    """
    network.requires_grad_(False).eval()
    for parameter in network.parameters():
        parameter.data = parameter.data.to(device, dtype, copy=True).contiguous()
    return network.to(device)


def rows_without_tail(*values_per_image: int) -> int:
    """Return the fewest images whose values fill whole steps of CPU kernels.

    Kernels work through a tensor in steps and take what is left over one by one, by another routine: the last
    values of an activation function are rounded differently where the whole does not fill its last step.

    Args:
        values_per_image: of each activation function's input: tokens times width.
    """
    return max(KERNEL_STEP // math.gcd(KERNEL_STEP, values) for values in values_per_image)


def in_whole_blocks(rows: Tensor) -> Tensor:
    """Return [n, ...] padded with its last row to a multiple of `HEAD_BLOCK` rows.

    CPU kernels take matrices with few rows in blocks and round those left over differently; what follows
    a network's last token mixing has one row per image, so without this a row would depend on how many
    others there are.
    """
    missing = -len(rows) % HEAD_BLOCK
    if not missing:
        return rows
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
