"""Work for workers on Ray that does next to nothing: they import this file, and nothing that is slow."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ttsvar_ray.errors import OutputError
from ttsvar_ray.rewards.protocol import PlainReward
from ttsvar_ray.types import Float32Array, UInt8Array


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


class OutOfWordsError(Exception):
    """An error that cannot be made again of its text, as a process that is told of it would have to."""

    def __init__(self, text: str, image: int) -> None:
        super().__init__(f"{text} of image {image}")


class Speechless(PlainReward):
    """A reward that fails."""

    def __init__(self, *, device: str) -> None:
        self.name = "speechless"

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Fail."""
        raise OutOfWordsError("nothing to say", 0)
