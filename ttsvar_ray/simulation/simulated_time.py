"""Simulated time: what is due, and what the workers' seconds were spent on."""

from __future__ import annotations

import enum
import heapq
import itertools
from collections.abc import Callable
from typing import Any

MOST_BINS = 512


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


class Spent(str, enum.Enum):
    """What a worker's second was for. Every second of every worker has exactly one of these."""

    USEFUL = "useful"
    """Computing what ended in the output; while the run goes on, all that is not known to be in vain."""
    REPLAY = "replay"
    """Rebuilding state from bits: after moves and losses."""
    LOST = "lost"
    """Computing what nobody took in: cut short by a loss, or done twice."""
    STARTING = "starting"
    """Not ready yet, at the beginning."""
    RESTARTING = "restarting"
    """Gone, or being replaced."""
    DECISION = "waiting for a decision"
    """Idle while its last answer travelled, waited at the coordinator or was worked on there."""
    NO_PROMPTS = "no prompts"
    """Idle until further prompts were leased."""
    OTHER_SHARDS = "waiting for other shards"
    """Idle although there are prompts: others hold what it could go on with, or memory is full."""
    TAIL = "tail of the run"
    """Idle after the last prompt was leased."""


COMPUTING = (Spent.USEFUL, Spent.REPLAY, Spent.LOST)

_INDEX = {spent: index for index, spent in enumerate(Spent)}


class Utilization:
    """Sums of seconds by reason, and the same along the run in at most `MOST_BINS` bins of equal width.

    When the run outgrows the bins, neighbours are merged and the width doubles.
    """

    def __init__(self, bin_seconds: float = 1.0) -> None:
        self.bin_seconds = bin_seconds
        self._totals = [0.0] * len(_INDEX)
        self._bins: list[list[float]] = [[] for _ in _INDEX]

    def add(self, spent: Spent, start: float, end: float) -> None:
        """Book [start, end] for one worker; nothing where it is empty."""
        if end <= start:
            return
        index = _INDEX[spent]
        self._totals[index] += end - start
        while end > MOST_BINS * self.bin_seconds:
            self._merge()
        bins = self._bins[index]
        width = self.bin_seconds
        first, last = int(start / width), int(end / width)
        if len(bins) <= last:
            bins.extend([0.0] * (last + 1 - len(bins)))
        if first == last:
            bins[first] += end - start
            return
        bins[first] += (first + 1) * width - start
        bins[last] += end - last * width
        for between in range(first + 1, last):
            bins[between] += width

    def rebook(self, before: Spent, after: Spent, seconds: float) -> None:
        """Move seconds from one reason to another; only in the totals, since when is not known."""
        self._totals[_INDEX[before]] -= seconds
        self._totals[_INDEX[after]] += seconds

    def total(self, *spent: Spent) -> float:
        """Return the seconds of some reasons."""
        return sum(self._totals[_INDEX[each]] for each in spent)

    def timeline(self) -> dict[str, list[float]]:
        """Return the seconds of each bin, by reason; all lists of one length."""
        length = max((len(bins) for bins in self._bins), default=0)
        return {
            spent.value: [*self._bins[index], *[0.0] * (length - len(self._bins[index]))]
            for spent, index in _INDEX.items()
        }

    def share_within(self, start: float, end: float, spent: tuple[Spent, ...]) -> float:
        """Return what share of the booked time of the bins that lie within [start, end] went to some reasons.

        NaN where no bin does.
        """
        bins = range(-int(-start // self.bin_seconds), int(end // self.bin_seconds))
        wanted = everything = 0.0
        for each, index in _INDEX.items():
            booked = sum(self._bins[index][b] for b in bins if b < len(self._bins[index]))
            everything += booked
            wanted += booked if each in spent else 0.0
        return wanted / everything if everything > 0 else float("nan")

    def _merge(self) -> None:
        self.bin_seconds *= 2
        for index, bins in enumerate(self._bins):
            even = bins if len(bins) % 2 == 0 else [*bins, 0.0]
            self._bins[index] = [even[i] + even[i + 1] for i in range(0, len(even), 2)]
