"""Simulated time: what is due, in order; what is due at the same time, in the order it was asked for."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class Clock:
    """A queue of calls by time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def at(self, time: float, call: Callable[..., object], *arguments: Any) -> None:
        """Let something happen at a time that is not over."""
        assert time >= self.now, f"{time} is over, it is {self.now}"
        heapq.heappush(self._due, (time, next(self._order), call, arguments))

    def advance(self) -> bool:
        """Let the next thing happen; return whether there was one."""
        if not self._due:
            return False
        self.now, _, call, arguments = heapq.heappop(self._due)
        call(*arguments)
        return True
