"""Work for workers on Ray that does next to nothing: they import this file, and nothing that is slow."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ttsvar_ray.errors import OutputError


def doubles(dies: Path | None) -> Callable[[int], int]:
    """Return what doubles numbers, and ends its process at the first 3; without a file, at every 3."""

    def do(number: int) -> int:
        if number == 3 and (dies is None or not dies.exists()):
            if dies is not None:
                dies.touch()
            os._exit(1)
        if number == 9:
            raise OutputError("no nine here")
        return 2 * number

    return do
