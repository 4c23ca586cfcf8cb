"""One session of a job wherever it runs: what it has, what is counted, and what is said at its end."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from ttsvar_ray.cluster.failures import FailureBreaker, explain_full
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.dataset.contents import committed_chunks, read_cost, summarise_output
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.lock import OutputLock
from ttsvar_ray.dataset.manifest import RunManifest
from ttsvar_ray.dataset.rows import RowContext
from ttsvar_ray.dataset.sessions import SessionLog
from ttsvar_ray.errors import InputError, OutputError, RunFailedError, StorageError, TtsVarError
from ttsvar_ray.job.runnable import JobParts
from ttsvar_ray.leasing.ledger import LeaseLedger
from ttsvar_ray.results import JobProgress, JobSummary, PromptFailure, PromptResult

logger = logging.getLogger(__name__)

MAX_NOTICES = 1000


@dataclass(slots=True, kw_only=True)
class RunStats:
    """Counts of one session.

    Attributes:
        prompts_total, prompts_resumed: of the whole set, and of those, done before.
        wanted: workers asked for.
        workers, most_workers: that are up, and most that were at a time.
        first_worker_at, last_outcome_at: on the monotonic clock; None before.
        first_image_seconds: from the first worker to the first image; NaN before.
        worker_seconds, changed_at: that workers had been up, all together, when their number was last told.
        notices: what went wrong and was survived; the first thousand lines.
    """

    prompts_total: int
    prompts_resumed: int
    wanted: int = 0
    workers: int = 0
    most_workers: int = 0
    first_worker_at: float | None = None
    last_outcome_at: float | None = None
    first_image_seconds: float = math.nan
    worker_seconds: float = 0.0
    changed_at: float = 0.0
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
        self.worker_seconds, self.changed_at = self.device_seconds, time.monotonic()
        self.workers = workers
        self.most_workers = max(self.most_workers, workers)
        if workers and self.first_worker_at is None:
            self.first_worker_at = self.changed_at

    def add(self, outcome: PromptResult | PromptFailure) -> None:
        """Count an outcome."""
        self.last_outcome_at = time.monotonic()
        if math.isnan(self.first_image_seconds) and isinstance(outcome, PromptResult):
            self.first_image_seconds = self.generating_seconds
        self._count(outcome, 1)

    def take_back(self, outcome: PromptResult | PromptFailure) -> None:
        """Count an outcome no more: its prompt runs again."""
        self._count(outcome, -1)

    @property
    def prompts_left(self) -> int:
        """Prompts that are not done."""
        return self.prompts_total - self.prompts_resumed - self.prompts_done

    @property
    def generating_seconds(self) -> float:
        """From the first worker to the last outcome; 0 before there is one."""
        if self.first_worker_at is None or self.last_outcome_at is None:
            return 0.0
        return max(0.0, self.last_outcome_at - self.first_worker_at)

    @property
    def device_seconds(self) -> float:
        """That workers have been up so far, all together."""
        return self.worker_seconds + self.workers * (time.monotonic() - self.changed_at)

    @property
    def images_per_second(self) -> float:
        """In those seconds; NaN where there are none."""
        return self.images / seconds if (seconds := self.generating_seconds) > 0 else math.nan

    def summary(
        self, layout: OutputLayout, ledger: LeaseLedger, manifest: RunManifest, *, seconds: float
    ) -> JobSummary:
        """Count what is on disk, at the end of a run that is done.

        Raises:
            LostRowsError: it is not every prompt once.
        """
        on_disk = summarise_output(layout, {index: ledger.rows(index) for index in ledger.chunks})
        if strays := layout.strays(ledger.chunks):
            logger.warning("%s", strays)
            self.notice(strays)
        return JobSummary(
            output=str(layout.root),
            uri=layout.root.uri,
            prompts=on_disk.prompts,
            images=on_disk.images,
            failed=on_disk.failed,
            bad_lines=on_disk.bad_lines,
            mean_reward=on_disk.mean_reward,
            cut=on_disk.cut,
            prompts_resumed=on_disk.prompts - (self.prompts_done - self.failed),
            workers=self.most_workers,
            seconds=seconds,
            images_per_second=self.images_per_second,
            generating_seconds=self.generating_seconds,
            first_image_seconds=self.first_image_seconds,
            notices=tuple(self.notices),
            cost=read_cost(layout, manifest),
        )

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
            mean_reward=self.reward_sum / finished if finished else math.nan,
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


@dataclass(slots=True, kw_only=True)
class Session:
    """What `driver.Driver` and `in_process.InProcess` share.

    Attributes:
        config, parts: the job, and what it runs.
        ledger: which prompts are out, and which chunks are whole.
        progress: called about once a second with the state of the run.
        sessions: where the output keeps which devices it was made on.
        context: `RowContext` but for the names of the model and the reward.
        on_part: called with the number of each part that is committed.
        breaker: ends a run in which too much fails.
    """

    config: JobConfig
    parts: JobParts
    layout: OutputLayout
    lock: OutputLock
    ledger: LeaseLedger
    progress: Callable[[JobProgress], None]
    sessions: SessionLog
    context: Callable[..., RowContext]
    stats: RunStats
    on_part: Callable[[int], None]
    breaker: FailureBreaker = field(init=False)

    def __post_init__(self) -> None:
        cluster = self.config.cluster
        self.breaker = FailureBreaker(max_rate=cluster.max_failure_rate, window=cluster.failure_window)

    @contextlib.contextmanager
    def ending_in_order(self) -> Iterator[None]:
        """End a run whose prompts, which are read while it goes on, cannot be read, or whose disk is full."""
        try:
            yield
        except OSError as error:
            if (full := explain_full(error, self.layout.root)) is None:
                raise
            self.end(RunFailedError, full)
        except StorageError as error:
            self.end(RunFailedError, str(error))
        except InputError as error:
            # The prompt file is no longer what it was: what was made of it before stays.
            self.end(InputError, str(error))

    def end(self, kind: type[TtsVarError], what: str) -> NoReturn:
        """Keep what is finished, then raise `kind` with what is left to do."""
        raise NotImplementedError

    def report(self) -> None:
        """Say where the run stands."""
        self.progress(self.stats.progress())

    def notice(self, text: str) -> None:
        """Warn of something that was survived, now and in the summary."""
        logger.warning("%s", text)
        self.stats.notice(text)

    def joined(self, device: str) -> None:
        """Note what outcomes are made on, and say so where the run had no such device before."""
        for change in self.sessions.add_device(device):
            self.notice(change)

    def count(self, outcome: PromptResult | PromptFailure) -> None:
        """Count an outcome, and say why a prompt is given up."""
        self.stats.add(outcome)
        if isinstance(outcome, PromptFailure):
            logger.warning("prompt %s is given up: %s", outcome.prompt.key, outcome.errors[-1])

    def committed(self, chunk_index: int) -> None:
        """Note that a part is there."""
        self.ledger.commit(chunk_index)
        self.note_spent()
        self.on_part(chunk_index)

    def note_spent(self) -> None:
        """Write down how long workers have been up; the run does not end because that cannot be written."""
        try:
            self.sessions.spent(self.stats.device_seconds)
        except (StorageError, OSError) as error:
            logger.warning("the seconds of this session cannot be written: %s", error)

    def judge(self, outcome: PromptResult | PromptFailure) -> None:
        """End a run in which too much fails."""
        self.breaker.observe(outcome)
        verdict = self.breaker.verdict()
        if verdict is not None:
            self.end(RunFailedError, verdict)


def how_to_go_on(layout: OutputLayout, ledger: LeaseLedger, what: str, *, kept: int = 0) -> str:
    """Return why a run ends, with what it leaves: parts, and finished prompts of parts that are not whole."""
    wanted = len(ledger.chunks)
    try:
        parts = f"{len(committed_chunks(layout))} of {wanted} parts are committed in {layout.root}"
    except (OutputError, StorageError, OSError) as error:
        # What cannot be counted must not hide why the run ends.
        place = f"{layout.root}, which cannot be read ({error})"
        parts = f"Of its {wanted} parts those that are whole are in {place}"
    more = f", and {kept} finished prompts of the next ones are kept" if kept else ""
    return f"{what}. {parts}{more}; the same command goes on from there"
