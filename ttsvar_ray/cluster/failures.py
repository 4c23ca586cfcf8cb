"""What failures mean: when a run should end over its prompts, and when a part of it is begun anew.

Policies are told what happened and return decisions as values; they own no actor and no clock.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ttsvar_ray.results import PromptFailure, PromptResult

if TYPE_CHECKING:
    from ttsvar_ray.storage.location import Location

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_WHERE = re.compile(r"^attempt \d+, segment \d+, worker \S+: ")
_DETAIL = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")


class FailureBreaker:
    """Opens when too many of the last prompts were given up.

    One broken setting or file fails every prompt: half a million dead letters help nobody. A few bad
    prompts are no reason to stop.
    """

    def __init__(self, *, max_rate: float, window: int) -> None:
        """Start closed.

        Args:
            max_rate: share of the window that may fail, in [0, 1]; 1 never opens.
            window: prompts looked at, at least 1; with fewer it never opens.
        """
        self._max_rate = max_rate
        self._window = window
        self._recent: deque[str | None] = deque()
        self._kinds: Counter[str] = Counter()
        self._example: dict[str, str] = {}

    def observe(self, outcome: PromptResult | PromptFailure) -> None:
        """Take in one outcome."""
        kind = None
        if isinstance(outcome, PromptFailure):
            error = _WHERE.sub("", outcome.errors[-1])
            kind = _DETAIL.sub("...", error)
            self._kinds[kind] += 1
            self._example[kind] = error
        self._recent.append(kind)
        if len(self._recent) > self._window:
            gone = self._recent.popleft()
            if gone is not None:
                self._kinds[gone] -= 1
                if not self._kinds[gone]:
                    del self._kinds[gone], self._example[gone]

    def verdict(self) -> str | None:
        """Return why the run should end, with the most common error, or None."""
        failed = self._kinds.total()
        if len(self._recent) < self._window or failed <= self._max_rate * self._window:
            return None
        kind, times = self._kinds.most_common(1)[0]
        return (
            f"{failed} of the last {self._window} prompts failed, more than cluster.max_failure_rate "
            f"({self._max_rate:g}) allows; {times} of them with: {self._example[kind]}. Mend the cause, or "
            "raise cluster.max_failure_rate (1 never stops)"
        )


@dataclass(slots=True, kw_only=True)
class RestartPolicy:
    """When something that fails is begun anew: after pauses that double, so long as it fails in a row.

    Attributes:
        name: of what fails, for the log.
        first_seconds, most_seconds: the pause after the first failure in a row, and the longest.
        most_failures: in a row, after which it is given up; None: never.
        failures: in a row, so far.
    """

    name: str
    first_seconds: float = 0.0
    most_seconds: float = 0.0
    most_failures: int | None = None
    failures: int = 0

    def failed(self, reason: str) -> float | None:
        """Return the seconds from now after which it is begun anew; None where it is given up."""
        self.failures += 1
        if self.most_failures is not None and self.failures > self.most_failures:
            logger.info("%s is given up after %d failures in a row: %s", self.name, self.failures, reason)
            return None
        seconds = min(self.most_seconds, self.first_seconds * 2.0 ** min(self.failures - 1, 30))
        told = (self.name, seconds, self.failures, reason)
        logger.info("%s is begun anew in %g s, after failure %d in a row: %s", *told)
        return seconds

    def worked(self) -> None:
        """Forget the failures."""
        self.failures = 0


def explain_full(error: BaseException | None, root: Location) -> str | None:
    """Return what to do about a storage without space; None where an error has another reason."""
    if not isinstance(error, OSError) or not _is_full(error):
        return None
    where = f"no space is left for {root}"
    if root.local_path is not None:
        usage = shutil.disk_usage(root.local_path)
        where += f" ({usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free)"
    return f"{where}; make room, then go on ({type(error).__name__}: {error})"


def _is_full(error: OSError) -> bool:
    # pyarrow says the number in its text where it does not set it.
    return error.errno in _FULL or any(f"[errno {number}]" in str(error).lower() for number in _FULL)
