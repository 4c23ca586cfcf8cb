"""When so many prompts fail that a run should end: a policy over the most recent outcomes, pure."""

from __future__ import annotations

import re
from collections import Counter, deque

from ttsvar_ray.results import PromptFailure, PromptResult

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
