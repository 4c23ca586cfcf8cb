"""What a job tells: while it runs, and when it is over."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """Where a running job stands.

    Attributes:
        prompts_total: prompts of the whole set.
        prompts_resumed: of those, done before this sitting.
        prompts_done: finished or given up in this sitting (their part may not be committed yet).
        failed: given up in this sitting.
        images: kept images of this sitting.
        mean_reward: of the best images of this sitting; NaN before the first.
        workers, workers_wanted: that are up, and that were asked for.
        seconds: since the first worker was up; 0 before.
    """

    prompts_total: int
    prompts_resumed: int
    prompts_done: int
    failed: int
    images: int
    mean_reward: float
    workers: int
    workers_wanted: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """How a job ended.

    Attributes:
        output: the folder, a path or a URI without credentials.
        prompts: prompts with images, over all sittings.
        images: rows, over all sittings.
        failed: prompts that were given up, over all sittings.
        bad_lines: lines of the prompt file that hold no prompt.
        mean_reward: over the best image of each prompt; NaN without any.
        prompts_resumed: prompts that were done before this sitting.
        workers: most workers that were up at a time.
        seconds: wall time of this sitting.
        images_per_second: of this sitting, from its first worker to its end; NaN if it made none.
        notices: what went wrong and was survived, one line each.
    """

    output: str
    prompts: int
    images: int
    failed: int
    bad_lines: int
    mean_reward: float
    prompts_resumed: int
    workers: int
    seconds: float
    images_per_second: float
    notices: tuple[str, ...] = ()
