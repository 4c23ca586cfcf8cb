"""How many segments of prompts one coordinator decides in a second, on one core.

A discrete-event loop answers for the workers: no model, no ray, batches take the seconds that a workload
predicts, so that answers come in a realistic order. Only processor time inside `Coordinator.handle` counts,
selections included. A decision is one segment of one prompt: selection and placement, or the final ranking.

    python -m benchmarks.coordinator_rate --workers 64 --prompts 2000 --out rate.json
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import cpu_name
from ttsvar_ray.coordination.coordinator import Coordinator
from ttsvar_ray.coordination.messages import (
    Action,
    BatchDone,
    Emit,
    Event,
    LeasePrompts,
    PromptsLeased,
    RunBatch,
    SegmentReport,
    ShardTask,
    Tick,
    WorkerJoined,
)
from ttsvar_ray.coordination.settings import CoordinatorSettings, SegmentLoad, Workload
from ttsvar_ray.results import FinalImage, PromptResult
from ttsvar_ray.search.operators.protocol import Choice, Signal
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.selection import Select, select
from ttsvar_ray.search.strategy import compile_plan
from ttsvar_ray.types import Prompt

SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
FEATURE_DIM = 256
GB = 10**9

WORKLOAD = Workload(
    source="Infinity-2B at 1024x1024, two streams in bf16: state as counted, seconds rounded for an H200",
    segments=(
        SegmentLoad(
            tokens=21,
            held_bytes=11_000_000,
            running_bytes=60_000_000,
            batch_seconds=0.05,
            row_seconds=0.012,
        ),
        SegmentLoad(
            tokens=244,
            held_bytes=GB * 14 // 100,
            running_bytes=GB * 3 // 10,
            batch_seconds=0.05,
            row_seconds=0.016,
            replay_seconds=0.002,
        ),
        SegmentLoad(
            tokens=256,
            held_bytes=GB * 27 // 100,
            running_bytes=GB * 45 // 100,
            batch_seconds=0.02,
            row_seconds=0.016,
            replay_seconds=0.005,
        ),
        SegmentLoad(
            tokens=2000,
            held_bytes=GB * 13 // 10,
            running_bytes=GB * 18 // 10,
            batch_seconds=0.05,
            row_seconds=0.06,
            replay_seconds=0.009,
        ),
        SegmentLoad(
            tokens=8000,
            running_bytes=GB * 55 // 10,
            batch_seconds=0.05,
            row_seconds=0.25,
            replay_seconds=0.056,
        ),
    ),
)
"""Round numbers of the size of a published model: they shape the batches, nothing else."""


class Answers:
    """Reports with the right shapes; numbers from a table drawn once, picked by prompt and slot."""

    def __init__(self, plan: Plan) -> None:
        generator = np.random.default_rng(0)
        self._plan = plan
        self._features = generator.standard_normal((509, FEATURE_DIM)).astype(np.float32)
        self._rewards = generator.standard_normal((509, 4)).astype(np.float32)
        self._bits = tuple(
            bytes(side * side * 4)
            for side in SIDES  # 32 bits a token, packed
        )

    def answer(self, task: ShardTask, seconds: float) -> SegmentReport:
        """Return what a worker would report."""
        segment = self._plan.segments[task.segment_index]
        has_features = Signal.FEATURES in segment.reads
        picked = [(task.prompt.row * 7919 + slot * 31 + task.segment_index) % 509 for slot in task.slots]
        image = FinalImage.of_bytes(b"", width=1024, height=1024, image_format="png")
        return SegmentReport(
            prompt_key=task.prompt.key,
            attempt=task.attempt,
            segment_index=task.segment_index,
            slots=task.slots,
            features=self._features[picked] if has_features else None,
            rewards=self._rewards[picked, : len(segment.scored_scales)],
            bits=(self._bits[segment.first_scale : segment.last_scale + 1],) * len(task.slots),
            images=(image,) * len(task.slots) if segment.is_last else (),
            seconds=seconds,
        )


class Run:
    """One coordinator, its workers and a clock that jumps."""

    def __init__(
        self,
        *,
        plan: Plan,
        workers: int,
        prompts: int,
        rows: int,
        memory_bytes: int | None,
        settings: CoordinatorSettings,
        selections: Select,
    ) -> None:
        self.plan = plan
        self.handled = 0.0
        self.events: Counter[str] = Counter()
        self.decisions = 0
        self.rows_run: Counter[int] = Counter()
        self.batches_run: Counter[int] = Counter()
        self.replayed = 0
        self.busy = 0.0
        self.now = 0.0
        self._answers = Answers(plan)
        self._coordinator = Coordinator(
            plan=plan, run_seed=0, settings=settings, workload=WORKLOAD, selections=selections
        )
        self._left = deque(
            Prompt(row=row, prompt_id=f"p{row}", ordinal=0, text="a photo of a bench")
            for row in range(prompts)
        )
        self._queues: dict[str, deque[RunBatch]] = {f"worker-{i}": deque() for i in range(workers)}
        self._busy: set[str] = set()
        self._heap: list[tuple[float, int, str, RunBatch]] = []
        self._generator = np.random.default_rng(1)
        self._outcomes = 0
        self._prompts = prompts
        for name in self._queues:
            self._tell(WorkerJoined(worker_id=name, rows=rows, memory_bytes=memory_bytes))

    def run(self) -> None:
        """Answer every batch in the order of time."""
        tick = 1.0
        while self._heap:
            self.now, _, name, batch = heapq.heappop(self._heap)
            while tick < self.now:
                self._tell(Tick(now=tick))
                tick += 1.0
            self._busy.discard(name)
            seconds = self._seconds(batch)
            results = tuple(self._answers.answer(task, seconds) for task in batch.tasks)
            self.decisions += len(results)
            self._tell(BatchDone(worker_id=name, batch_id=batch.batch_id, results=results))
            self._start(name)
        assert self._coordinator.is_done
        assert self._outcomes == self._prompts

    def _seconds(self, batch: RunBatch) -> float:
        rows = sum(len(task.slots) for task in batch.tasks)
        replayed = sum(len(task.parent_bits) for task in batch.tasks)
        return WORKLOAD.seconds(batch.tasks[0].segment_index, rows, replayed)

    def _start(self, name: str) -> None:
        if name in self._busy or not self._queues[name]:
            return
        batch = self._queues[name].popleft()
        self._busy.add(name)
        segment = batch.tasks[0].segment_index
        self.rows_run[segment] += sum(len(task.slots) for task in batch.tasks)
        self.batches_run[segment] += 1
        self.replayed += sum(len(task.parent_bits) for task in batch.tasks)
        seconds = self._seconds(batch) * float(self._generator.uniform(0.95, 1.05))
        self.busy += seconds
        heapq.heappush(self._heap, (self.now + seconds, batch.batch_id, name, batch))

    def _tell(self, event: Event) -> None:
        started = time.thread_time()
        actions = self._coordinator.handle(event)
        self.handled += time.thread_time() - started
        self.events[type(event).__name__] += 1
        for action in actions:
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, RunBatch):
            self._queues[action.worker_id].append(action)
            self._start(action.worker_id)
        elif isinstance(action, LeasePrompts):
            count = min(action.count, len(self._left))
            prompts = tuple(self._left.popleft() for _ in range(count))
            self._tell(PromptsLeased(prompts=prompts, is_last=not self._left))
        elif isinstance(action, Emit):
            assert isinstance(action.outcome, PromptResult), action.outcome
            self._outcomes += 1


class Timed:
    """A selection function that knows how long it took in all."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Choice:
        started = time.thread_time()
        try:
            return select(*args, **kwargs)
        finally:
            self.seconds += time.thread_time() - started


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return one measurement, and what the workers were given to do."""
    timed = Timed()
    plan = compile_plan(
        scale_schedule=tuple((side, side) for side in SIDES), strategy="tts-var", n=arguments.n
    )
    settings = CoordinatorSettings(spread="auto" if arguments.spread == "auto" else int(arguments.spread))
    memory = int(arguments.memory_gb * GB) or None
    run = Run(
        plan=plan,
        workers=arguments.workers,
        prompts=arguments.prompts,
        rows=arguments.rows,
        memory_bytes=memory,
        settings=settings,
        selections=timed,
    )
    run.run()
    return {
        "setting": {
            "workers": arguments.workers,
            "prompts": arguments.prompts,
            "rows": arguments.rows,
            "n": arguments.n,
            "segments": len(plan.segments),
            "memory_gb": arguments.memory_gb,
            "spread": arguments.spread,
        },
        "decisions": run.decisions,
        "seconds": round(run.handled, 3),
        "decisions_per_second": round(run.decisions / run.handled, 1),
        "of_which_selecting_seconds": round(timed.seconds, 3),
        "decisions_per_second_without_selecting": round(run.decisions / (run.handled - timed.seconds), 1),
        "events": dict(run.events),
        "simulated": {
            "seconds": round(run.now, 1),
            "decisions_per_second": round(run.decisions / run.now, 1),
            "workers_busy": round(run.busy / run.now / arguments.workers, 4),
            "parents_replayed": run.replayed,
            "rows_per_batch": {s: round(run.rows_run[s] / n, 2) for s, n in sorted(run.batches_run.items())},
        },
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--n", type=int, default=1, help="the N of the paper")
    parser.add_argument("--memory-gb", type=float, default=110.0, help="of a worker; 0: limits of rows alone")
    parser.add_argument("--spread", default="auto")
    parser.add_argument("--out", type=Path, default=None)
    parsed = parser.parse_args(arguments)
    text = json.dumps(measure(parsed), indent=2)
    print(text)
    if parsed.out is not None:
        parsed.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
