"""Bits of one trajectory between the model's arrays and the packed bytes that travel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ttsvar_ray.results import PackedBits
from ttsvar_ray.types import ScaleSchedule, UInt8Array


def pack_rows(bits: Sequence[UInt8Array]) -> list[PackedBits]:
    """Pack the bits of several trajectories.

    Args:
        bits: per scale, uint8 [rows, tokens, bits_per_token] of 0 and 1.

    Returns:
        One `PackedBits` per row.
    """
    rows = bits[0].shape[0]
    packed = [np.packbits(np.asarray(scale).reshape(rows, -1), axis=1) for scale in bits]
    return [tuple(scale[row].tobytes() for scale in packed) for row in range(rows)]


def unpack_rows(
    packed: Sequence[PackedBits], *, scale_schedule: ScaleSchedule, bits_per_token: int
) -> list[UInt8Array]:
    """Undo `pack_rows` for trajectories that have all finished the same scales.

    Args:
        packed: one entry per row, each of the first scales of `scale_schedule`.
        scale_schedule: (h, w) of each scale.
        bits_per_token: bits in one token.

    Returns:
        Per finished scale, uint8 [rows, h * w, bits_per_token].

    Raises:
        ValueError: the rows do not have the same number of scales, or a scale has the wrong size.
    """
    num_scales = len(packed[0])
    if any(len(row) != num_scales for row in packed):
        raise ValueError(f"packed bits: rows of one replay have {sorted({len(r) for r in packed})} scales")
    unpacked: list[UInt8Array] = []
    for scale_index in range(num_scales):
        height, width = scale_schedule[scale_index]
        count = height * width * bits_per_token
        expected = (count + 7) // 8
        for row in packed:
            if len(row[scale_index]) != expected:
                raise ValueError(
                    f"packed bits, scale {scale_index}: expected {expected} bytes "
                    f"({height}x{width} tokens of {bits_per_token} bits), got {len(row[scale_index])}"
                )
        data = np.frombuffer(b"".join(row[scale_index] for row in packed), dtype=np.uint8)
        flat = np.unpackbits(data.reshape(len(packed), expected), axis=1, count=count)
        unpacked.append(flat.reshape(len(packed), height * width, bits_per_token))
    return unpacked
