"""An engine that sleeps as long as a segment would take on a large GPU, and answers as a real one would.

Everything around the computing is real: tasks, bits, features, rewards and images of their usual sizes. It
holds the name of each trajectory and refuses to go on from one that it does not hold, like `Engine`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from benchmarks.diary import DiaryWriter
from ttsvar_ray.coordination.messages import FailureKind, SegmentReport, ShardFailure, ShardTask
from ttsvar_ray.coordination.settings import Workload
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.results import FinalImage
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Plan, Segment

FEATURE_DIM = 256


class SleepingEngine:
    """Takes the place of an `Engine`; writes down when each micro-batch began and ended."""

    model_name = "sleeping"
    reward_name = "none"

    def __init__(
        self, *, plan: Plan, workload: Workload, rows: int, image_bytes: int, bits_per_token: int, log: Path
    ) -> None:
        """Make the payloads.

        Args:
            plan: what is asked of it.
            workload: how long it sleeps.
            rows: most trajectories of a micro-batch.
            image_bytes: of one finished image.
            bits_per_token: of its tokens.
            log: folder for its diary, a file of JSON lines named by process.
        """
        self.settings = EngineSettings(micro_batch_rows=rows)
        self._plan = plan
        self._workload = workload
        self._image = os.urandom(image_bytes)
        self._bits = [
            tuple(
                os.urandom(height * width * bits_per_token // 8)
                for height, width in plan.scale_schedule[segment.first_scale : segment.last_scale + 1]
            )
            for segment in plan.segments
        ]
        self._random = np.random.default_rng(os.getpid())
        self._held: dict[tuple[str, int], dict[int, set[int]]] = {}
        self._diary = DiaryWriter(log)

    @property
    def held_prompts(self) -> int:
        """Attempts that it holds."""
        return len(self._held)

    @property
    def held_trajectories(self) -> int:
        """Trajectories of the newest segment of each."""
        return sum(len(segments[max(segments)]) for segments in self._held.values() if segments)

    def release(self, prompt_key: str, attempt: int) -> None:
        """Forget one attempt."""
        self._held.pop((prompt_key, attempt), None)

    def run_segment(self, tasks: Sequence[ShardTask]) -> list[SegmentReport | ShardFailure]:
        """Sleep for as long as the micro-batch would take, and answer."""
        began = time.monotonic()
        segment = self._plan.segments[tasks[0].segment_index]
        rows = sum(len(task.slots) for task in tasks)
        replayed = sum(len(task.parent_bits) for task in tasks)
        seconds = self._workload.seconds(segment.index, rows, replayed)
        answers = [self._answer(task, segment, seconds) for task in tasks]
        # What the answers cost here is part of the time that they would have taken there.
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        self._diary.write(
            segment=segment.index,
            rows=rows,
            replayed=replayed,
            began=began,
            ended=time.monotonic(),
            asked=seconds,
        )
        return answers

    def _answer(self, task: ShardTask, segment: Segment, seconds: float) -> SegmentReport | ShardFailure:
        segments = self._held.setdefault((task.prompt.key, task.attempt), {})
        for older in [index for index in segments if index < segment.index - 1]:
            del segments[older]
        known = segments.get(segment.index - 1, set()) | set(task.parent_bits)
        if not set(task.parent_slots) <= known:
            return ShardFailure.of(task, FailureKind.STALE, "a parent is not held here")
        segments.setdefault(segment.index, set()).update(task.slots)
        count = len(task.slots)
        has_features = Signal.FEATURES in segment.reads
        image = FinalImage.of_bytes(self._image, width=1024, height=1024, image_format="png")
        return SegmentReport(
            prompt_key=task.prompt.key,
            attempt=task.attempt,
            segment_index=segment.index,
            slots=task.slots,
            features=self._random.normal(size=(count, FEATURE_DIM)).astype(np.float32)
            if has_features
            else None,
            rewards=self._random.random((count, len(segment.scored_scales)), dtype=np.float32),
            bits=(self._bits[segment.index],) * count,
            images=(image,) * count if segment.is_last else (),
            seconds=seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SleepingEngineBuilder:
    """Builds a sleeping engine wherever it is called; arguments as `SleepingEngine`."""

    plan: Plan
    workload: Workload
    rows: int
    image_bytes: int
    bits_per_token: int
    log: Path

    def __call__(self) -> Engine:
        """Build one."""
        engine = SleepingEngine(
            plan=self.plan,
            workload=self.workload,
            rows=self.rows,
            image_bytes=self.image_bytes,
            bits_per_token=self.bits_per_token,
            log=self.log,
        )
        return cast(Engine, engine)
