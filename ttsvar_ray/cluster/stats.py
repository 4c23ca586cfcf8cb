"""What is counted while a session of a job runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ttsvar_ray.results import JobProgress, PromptFailure, PromptResult

MAX_NOTICES = 1000


@dataclass(slots=True, kw_only=True)
class RunStats:
    """Counts of one session.

    Attributes:
        prompts_total, prompts_resumed: of the whole set, and of those, done before.
        wanted: workers asked for.
        workers, most_workers: that are up, and most that were at a time.
        first_worker_at, last_outcome_at: on the monotonic clock; None before.
        notices: what went wrong and was survived; the first thousand lines.
    """

    prompts_total: int
    prompts_resumed: int
    wanted: int = 0
    workers: int = 0
    most_workers: int = 0
    first_worker_at: float | None = None
    last_outcome_at: float | None = None
    prompts_done: int = 0
    failed: int = 0
    images: int = 0
    reward_sum: float = 0.0
    notices: list[str] = field(default_factory=list)

    def notice(self, text: str) -> None:
        """Keep a line for the summary."""
        if len(self.notices) < MAX_NOTICES:
            self.notices.append(text)

    def set_workers(self, workers: int) -> None:
        """Take in how many workers are up."""
        self.workers = workers
        self.most_workers = max(self.most_workers, workers)
        if workers and self.first_worker_at is None:
            self.first_worker_at = time.monotonic()

    def add(self, outcome: PromptResult | PromptFailure) -> None:
        """Count an outcome."""
        self.last_outcome_at = time.monotonic()
        self._count(outcome, 1)

    def take_back(self, outcome: PromptResult | PromptFailure) -> None:
        """Count an outcome no more: its prompt runs again."""
        self._count(outcome, -1)

    @property
    def images_per_second(self) -> float:
        """From the first worker to the last outcome; NaN before there is one."""
        if self.first_worker_at is None or self.last_outcome_at is None:
            return float("nan")
        seconds = self.last_outcome_at - self.first_worker_at
        return self.images / seconds if seconds > 0 else float("nan")

    def progress(self) -> JobProgress:
        """Return where the job stands."""
        finished = self.prompts_done - self.failed
        started = self.first_worker_at
        return JobProgress(
            prompts_total=self.prompts_total,
            prompts_resumed=self.prompts_resumed,
            prompts_done=self.prompts_done,
            failed=self.failed,
            images=self.images,
            mean_reward=self.reward_sum / finished if finished else float("nan"),
            workers=self.workers,
            workers_wanted=self.wanted,
            seconds=0.0 if started is None else time.monotonic() - started,
        )

    def _count(self, outcome: PromptResult | PromptFailure, times: int) -> None:
        self.prompts_done += times
        if isinstance(outcome, PromptResult):
            self.images += times * len(outcome.images)
            self.reward_sum += times * outcome.images[0].reward
        else:
            self.failed += times
