"""One session of a job in this process: no Ray, one engine, the same bytes.

    prompts --LeaseLedger--> run_local: coordinator <--> engine     one call at a time
                  |  whole chunks
                  '--------> write_chunk --> parts

What is different is only who calls whom. Ledger, lock, parts, dead letters and the ways to end are those of
`cluster.driver`. A request to stop is looked at between two segments.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ttsvar_ray.cluster.failures import explain_full
from ttsvar_ray.cluster.session import StopRequest, stop_on_signals
from ttsvar_ray.cluster.stats import Session, how_to_go_on
from ttsvar_ray.dataset.writer import write_chunk, write_partial
from ttsvar_ray.engine.device import device_name
from ttsvar_ray.engine.engine import Engine
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.errors import (
    CannotStartError,
    CheckpointError,
    ConfigurationError,
    InterruptedRunError,
    OutputError,
    RunFailedError,
    StorageError,
    TtsVarError,
    brief,
)
from ttsvar_ray.job.preflight import Device
from ttsvar_ray.job.resolved import coordinator_settings
from ttsvar_ray.leasing.ledger import WholeChunk
from ttsvar_ray.types import Prompt

logger = logging.getLogger(__name__)

CELL_ID = "local"
PROGRESS_SECONDS = 0.5


@dataclass(slots=True, kw_only=True)
class InProcess(Session):
    """One session of a job; see the module docstring."""

    device: Device
    names: dict[str, str] = field(default_factory=dict)
    _told_at: float = 0.0

    def run(self) -> None:
        """Run to the end or to a request to stop.

        Raises:
            CannotStartError: an engine that cannot be built.
            InterruptedRunError, RunFailedError: what is whole is committed; the same command goes on.
            InputError: the prompt file was changed; the same command goes on once it is as it was.
        """
        logger.info("running in this process, without Ray")
        self.stats.wanted = 1
        with stop_on_signals() as stop:
            self.report()
            try:
                engine = self.parts.build_engine()
            except (ConfigurationError, CheckpointError) as error:
                raise CannotStartError(str(error)) from error
            outcomes = run_local(
                self._prompts(),
                plan=self.parts.plan,
                engines=[_Watched(engine, lambda: self._look(stop))],  # type: ignore[list-item]
                run_seed=self.config.seed,
                settings=coordinator_settings(self.config),
                workload=self.parts.expect(self.device.known),
            )
            with self.ending_in_order():
                self.joined(device_name(on_gpu=self.device.memory_bytes is not None))
                self.stats.set_workers(1)
                self.report()
                for outcome in outcomes:
                    receipt = self.ledger.add(CELL_ID, outcome)
                    self.count(outcome)
                    self.names = {"model": engine.model_name, "reward_name": engine.reward_name}
                    if receipt.whole is not None:
                        self._write(receipt.whole)
                    self.judge(outcome)
            self.report()

    def _prompts(self) -> Iterator[Prompt]:
        while True:
            lease = self.ledger.lease(CELL_ID, 1, now=time.monotonic())
            yield from lease.prompts
            if lease.is_last:
                return

    def _look(self, stop: StopRequest) -> None:
        """Look whether the run is to go on, and say where it stands."""
        self.lock.check()
        if stop.reason is not None:
            self.end(InterruptedRunError, f"stopped by {stop.reason}")
        if time.monotonic() - self._told_at >= PROGRESS_SECONDS:
            self._told_at = time.monotonic()
            self.report()

    def end(self, kind: type[TtsVarError], what: str) -> NoReturn:
        """Keep what is finished of parts that are not whole, then raise."""
        kept = 0
        try:
            for chunk in self.ledger.unfinished():
                context = self.context(**self.names)
                write_partial(
                    self.layout, chunk.chunk_index, rows=chunk.rows, finished=chunk.finished, context=context
                )
                kept += len(chunk.finished)
        except (OSError, OutputError, StorageError) as error:
            logger.warning("some finished prompts were not kept: %s", brief(error))
        raise kind(how_to_go_on(self.layout, self.ledger, what, kept=kept))

    def _write(self, chunk: WholeChunk) -> None:
        try:
            report = write_chunk(
                self.layout,
                chunk.chunk_index,
                rows=chunk.rows,
                finished=chunk.finished,
                failed=chunk.failed,
                context=self.context(**self.names),
            )
        except (OSError, OutputError, StorageError) as error:
            reason = explain_full(error, self.layout.root) or brief(error)
            what = f"part {chunk.chunk_index} could not be written: {reason}"
            raise RunFailedError(how_to_go_on(self.layout, self.ledger, what)) from error
        self.committed(report.chunk_index)


@dataclass(frozen=True, slots=True)
class _Watched:
    """An engine whose caller looks around before each of its segments."""

    engine: Engine
    look: Callable[[], None]

    @property
    def settings(self) -> Any:
        return self.engine.settings

    def run_segment(self, tasks: Sequence[Any]) -> Any:
        self.look()
        return self.engine.run_segment(tasks)

    def release(self, prompt_key: str, attempt: int) -> None:
        self.engine.release(prompt_key, attempt)
