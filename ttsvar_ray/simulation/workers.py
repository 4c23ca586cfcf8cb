"""Simulated time, the workers in it, and what their seconds were spent on.

A worker is a queue of micro-batches that run one after the other. The start and the end of each are known
when it is sent, because nothing overtakes it. Its time is booked when it is over: at its end, or at the
worker's.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ttsvar_ray.coordination.messages import RunBatch

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

    def __init__(self) -> None:
        self.bin_seconds = 1.0
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


@dataclass(slots=True, kw_only=True)
class RunningBatch:
    """A micro-batch that was sent.

    Attributes:
        start, end: when it computes; the worker is idle from the end of the one before to `start`.
        replay_share: share of its time that rebuilds parents, 0..1.
        cause: what the worker waited for, once the coordinator had taken in its last answer.
        is_lost: its worker ended before it did.
    """

    batch: RunBatch
    start: float
    end: float
    replay_share: float
    cause: Spent
    is_lost: bool = False


@dataclass(slots=True, kw_only=True)
class SimulatedWorker:
    """One GPU, and the worker that runs on it now.

    Attributes:
        slowdown: how many times longer it takes than predicted; 1 unless it is a straggler.
        incarnation: workers that were here before.
        is_up: whether there is one now.
        idle_since: end of its last micro-batch that was booked, or when it became ready.
        handled_at: when the coordinator had taken in its last answer and its next orders were on their
            way; None while an answer is on its way or waits.
        running: sent and not over, oldest first.
    """

    gpu: int
    slowdown: float
    incarnation: int = 0
    is_up: bool = False
    idle_since: float = 0.0
    handled_at: float | None = None
    running: deque[RunningBatch] = field(default_factory=deque)

    @property
    def worker_id(self) -> str:
        """Unique over the whole run."""
        return f"gpu-{self.gpu}" if self.incarnation == 0 else f"gpu-{self.gpu}.{self.incarnation}"

    @property
    def free_at(self) -> float:
        """When everything that was sent will be over."""
        return self.running[-1].end if self.running else self.idle_since

    @property
    def absent(self) -> Spent:
        """What the time is booked as in which no worker is up."""
        return Spent.STARTING if self.incarnation == 0 else Spent.RESTARTING

    def come_up(self, now: float) -> None:
        """Become ready, without state."""
        assert not self.is_up
        assert not self.running
        self.is_up = True
        self.idle_since = now
        self.handled_at = None

    def finish(self, utilization: Utilization) -> None:
        """Book the oldest micro-batch, which is over."""
        done = self.running.popleft()
        self._book_idle(utilization, done.start, done.cause)
        turned = done.start + (done.end - done.start) * done.replay_share
        utilization.add(Spent.REPLAY, done.start, turned)
        utilization.add(Spent.USEFUL, turned, done.end)
        self.idle_since = done.end

    def go_down(self, now: float, utilization: Utilization, cause: Spent) -> None:
        """End with everything that was sent; its computing is cut short.

        Args:
            cause: of being idle, where nothing was sent.
        """
        while self.running and self.running[0].end <= now:
            # Its answer left in time.
            self.finish(utilization)
        for batch in self.running:
            batch.is_lost = True
            start, end = min(batch.start, now), min(batch.end, now)
            self._book_idle(utilization, start, batch.cause)
            utilization.add(Spent.LOST, start, end)
            self.idle_since = end
        self.running.clear()
        self._book_idle(utilization, now, cause)
        self.idle_since = now
        self.is_up = False
        self.incarnation += 1

    def stop(self, now: float, utilization: Utilization, exhausted_at: float) -> None:
        """Book the time until the end of the run.

        Args:
            exhausted_at: when the last prompt was leased.
        """
        if self.running:
            # For prompts that another cell has finished meanwhile.
            self.go_down(now, utilization, Spent.TAIL)
            return
        if not self.is_up:
            utilization.add(self.absent, self.idle_since, now)
            return
        self._book_idle(utilization, min(max(exhausted_at, self.idle_since), now), Spent.OTHER_SHARDS)
        self.handled_at = self.idle_since
        self._book_idle(utilization, now, Spent.TAIL)

    def _book_idle(self, utilization: Utilization, until: float, cause: Spent) -> None:
        """Book [idle_since, until]: first the wait for the coordinator's answer, then for `cause`."""
        if until <= self.idle_since:
            return
        decided = until if self.handled_at is None else min(until, max(self.idle_since, self.handled_at))
        utilization.add(Spent.DECISION, self.idle_since, decided)
        utilization.add(cause, decided, until)
        self.idle_since = until
