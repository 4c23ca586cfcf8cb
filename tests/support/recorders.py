"""A recorder of passes for machines without CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class PlainRecorder:
    """Calls again: the same use of memory where there are no graphs, to test it."""

    def record(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return call
