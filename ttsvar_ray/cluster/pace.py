"""Time as a run may count it, and how long to wait before trying something again."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_STEP_S = 5.0


class PatientClock:
    """Seconds that never jump.

    A process that was stopped (a paused machine, a swapped-out node) finds at its return that much time
    went by in which nobody could have answered it. Such a gap counts as one small step, or every
    deadline would be over at once.
    """

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._last = source()
        self._now = 0.0

    def __call__(self) -> float:
        """Return seconds since the clock was made; to be asked about once a second."""
        now = self._source()
        self._now += min(now - self._last, MAX_STEP_S)
        self._last = now
        return self._now


def back_off(failures: int, *, first_s: float, most_s: float) -> float:
    """Return the seconds to wait after so many failures in a row: twice as long each time, up to a limit.

    Args:
        failures: at least 1.
    """
    return min(most_s, first_s * 2.0 ** min(failures - 1, 30))
