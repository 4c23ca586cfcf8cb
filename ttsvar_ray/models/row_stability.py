"""Keep a row's result independent of how many rows share its batch, on a CPU.

The CPU matmul kernels change their summation order when a matrix has very few rows (facts measured on
MKL and oneDNN: below 4 rows with one thread, below 12 with two), and convolutions when the batch holds one
image, or lies in memory in another order: channels first and channels last have kernels of their own. Rows
are padded, which costs nothing where it matters (few rows are cheap), and images are brought into one order.
On other devices, and when gradients are recorded, nothing is changed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_ROWS_PER_THREAD = 8
MIN_CONV_IMAGES = 2


def _pads(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.is_grad_enabled()


def min_linear_rows() -> int:
    """Return the rows from which a CPU matmul computes each row alike, with the threads of this process."""
    return MIN_ROWS_PER_THREAD * torch.get_num_threads()


def stable_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply `F.linear` to x [..., in] with at least `min_linear_rows()` rows on a CPU."""
    rows = x.numel() // x.shape[-1]
    least = min_linear_rows()
    if rows >= least or not _pads(x):
        return F.linear(x, weight, bias)
    padded = F.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, least - rows))
    return F.linear(padded, weight, bias)[:rows].reshape(*x.shape[:-1], weight.shape[0])


class StableLinear(nn.Linear):
    """`nn.Linear` that casts its input to the weight's dtype and is row-stable on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return stable_linear(x.to(self.weight.dtype), self.weight, self.bias)


def pad_images(images: Tensor) -> Tensor:
    """Return images [B, C, H, W] as a CPU convolution computes each alike, in any batch.

    A lone image is doubled, so the result may have more rows than its argument; and the numbers lie in memory
    channels first, row by row, whatever made them.
    """
    if not _pads(images):
        return images
    if images.shape[0] < MIN_CONV_IMAGES:
        images = images.expand(MIN_CONV_IMAGES, *images.shape[1:])
    # Two steps: an axis of length 1 may keep any stride in `contiguous`, and a convolution looks at strides.
    return images.contiguous().flatten().view(images.shape)
