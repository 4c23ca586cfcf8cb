"""The real engine of a job, which writes down when each micro-batch began and ended and what it computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from benchmarks.diary import DiaryWriter
from ttsvar_ray.coordination.messages import SegmentReport, ShardFailure, ShardTask
from ttsvar_ray.engine.engine import Engine

START_TIMEOUT_S = 600.0


class RecordingEngine:
    """Hands everything on to an engine."""

    def __init__(self, engine: Engine, log: Path) -> None:
        """Wrap an engine.

        Args:
            engine: does the work.
            log: folder of the diaries.
        """
        self._engine = engine
        self._diary = DiaryWriter(log)
        self.settings = engine.settings
        self.model_name = engine.model_name
        self.reward_name = engine.reward_name
        self.release = engine.release

    @property
    def held_prompts(self) -> int:
        """Attempts that are held."""
        return self._engine.held_prompts

    @property
    def held_trajectories(self) -> int:
        """Trajectories that are held."""
        return self._engine.held_trajectories

    def run_segment(self, tasks: Sequence[ShardTask]) -> list[SegmentReport | ShardFailure]:
        """Run a micro-batch and note it."""
        began, cpu = time.monotonic(), time.process_time()
        answers = self._engine.run_segment(tasks)
        self._diary.write(
            segment=tasks[0].segment_index,
            rows=sum(len(task.slots) for task in tasks),
            replayed=sum(len(task.parent_bits) for task in tasks),
            began=began,
            ended=time.monotonic(),
            asked=time.process_time() - cpu,
        )
        return answers


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingEngineBuilder:
    """Builds the engine of a job, and waits until all workers have theirs, so that they begin together.

    Attributes:
        build_engine: of the job.
        log: folder of the diaries.
        workers: that begin together.
    """

    build_engine: Callable[[], Engine]
    log: Path
    workers: int

    def __call__(self) -> Engine:
        """Build one."""
        engine = RecordingEngine(self.build_engine(), self.log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while len(list(self.log.glob("*.jsonl"))) < self.workers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all of {self.workers} workers were ready after {START_TIMEOUT_S} s")
            time.sleep(0.05)
        return cast(Engine, engine)
