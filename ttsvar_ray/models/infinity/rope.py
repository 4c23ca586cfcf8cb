"""Two-dimensional rotary position embedding on a common grid.

Every scale covers the same picture, so a token's row and column are stretched to one reference grid
before the rotation: coarse and fine tokens at the same place rotate alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROPE_BASE = 10000.0


def rope_table(size: tuple[int, int], grid: tuple[int, int], head_dim: int) -> Tensor:
    """Return the rotations of one scale, complex64 [h * w, head_dim / 2].

    The first half of the angles belongs to the row, the second to the column. Positions are multiplied in
    float32 and rounded half to even, as in the published models.

    Args:
        size: (h, w) tokens of the scale.
        grid: (rows, columns) of the reference grid.
        head_dim: width of one head, a multiple of 4.
    """
    (height, width), (grid_rows, grid_columns) = size, grid
    half = head_dim // 2
    inverse = 1.0 / (ROPE_BASE ** (torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half))
    rows = torch.round(torch.arange(height, dtype=torch.float32, device="cpu") * (grid_rows / height))
    columns = torch.round(torch.arange(width, dtype=torch.float32, device="cpu") * (grid_columns / width))
    row_angles = torch.outer(rows, inverse)[:, None, :].expand(height, width, -1)
    column_angles = torch.outer(columns, inverse)[None, :, :].expand(height, width, -1)
    angles = torch.cat((row_angles, column_angles), dim=-1).reshape(height * width, half)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs (0, 1), (2, 3), ... of x float32 [..., n, heads, head_dim] by `rope_table`."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[:, None, :]).flatten(-2)
