"""Numbers with units, for people: decimal, three digits."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """Return "3.4 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def flops_text(count: float) -> str:
    """Return "116 TFLOP"."""
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TFLOP"
