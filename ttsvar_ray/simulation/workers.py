"""One simulated worker: a queue of micro-batches that run one after the other, and where its time goes.

A micro-batch's start and end are known when it is sent, because nothing overtakes it. Its time is booked when
it is over: at its end, or at the worker's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ttsvar_ray.coordination.messages import RunBatch
from ttsvar_ray.simulation.simulated_time import Spent, Utilization


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
        gpu: which one.
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
            now: the time.
            utilization: to book to.
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
            now: the end.
            utilization: to book to.
            exhausted_at: when the last prompt was leased.
        """
        if self.running:
            # For prompts that another cell has finished meanwhile.
            self.go_down(now, utilization, Spent.TAIL)
            return
        if not self.is_up:
            utilization.add(
                Spent.STARTING if self.incarnation == 0 else Spent.RESTARTING, self.idle_since, now
            )
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
