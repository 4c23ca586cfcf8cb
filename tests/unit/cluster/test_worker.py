"""A worker outside Ray: a call that comes twice, and answers for batches without any."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import ray

from tests.support.plans import tts_var_plan
from tests.support.prompts import make_prompts
from tests.support.tiny_engine import TinyEngineBuilder
from ttsvar_ray.cluster.worker import PackedBuilder, SegmentWorker
from ttsvar_ray.coordination.messages import FailureKind, SegmentReport, ShardFailure, ShardTask
from ttsvar_ray.engine.engine import Engine


def same(first: list[SegmentReport], second: list[SegmentReport]) -> bool:
    return all(
        a.bits == b.bits and np.array_equal(a.rewards, b.rewards) and a.slots == b.slots
        for a, b in zip(first, second, strict=True)
    )


def test_a_call_whose_answer_was_lost_can_be_made_again() -> None:
    """Also after the next segment was begun: the worker keeps two segments of each attempt."""
    plan = tts_var_plan()
    worker = SegmentWorker("worker-0", TinyEngineBuilder(seed=3))
    prompt = make_prompts(1)[0]
    start = [
        ShardTask(prompt=prompt, attempt=1, segment_index=0, slots=tuple(range(plan.segments[0].population)))
    ]
    slots = tuple(range(plan.segments[1].population))
    go_on = [ShardTask(prompt=prompt, attempt=1, segment_index=1, slots=slots, parent_slots=slots)]
    first = worker.run_batch(0, start, 0)
    assert same(first, worker.run_batch(1, start, 0))
    second = worker.run_batch(2, go_on, 0)
    assert same(second, worker.run_batch(3, go_on, 0))
    worker.release(prompt.key, 1)
    worker.release(prompt.key, 1)
    (stale,) = worker.run_batch(4, go_on, 0)
    assert stale.kind is FailureKind.STALE


def test_a_task_without_an_answer_has_failed_with_all_its_slots() -> None:
    tasks = [ShardTask(prompt=p, attempt=2, segment_index=4, slots=(1, 3)) for p in make_prompts(2)]
    failures = [ShardFailure.of(task, FailureKind.MEMORY, "store full") for task in tasks]
    assert [(f.prompt_key, f.attempt, f.segment_index, f.slots) for f in failures] == [
        (task.prompt.key, 2, 4, (1, 3)) for task in tasks
    ]
    assert {(f.kind, f.error) for f in failures} == {(FailureKind.MEMORY, "store full")}


def test_a_cell_imports_nothing_of_engines_settings_and_files() -> None:
    packed = PackedBuilder.pack(TinyEngineBuilder(seed=3))
    assert isinstance(packed(), Engine)
    code = (
        "import sys, ray; import ttsvar_ray.cluster.cell; "
        f"ray.cloudpickle.loads({ray.cloudpickle.dumps(packed)!r}); "
        "unused = 'torch', 'pyarrow', 'pydantic', 'ttsvar_ray.job', 'tests.support.tiny_engine'; "
        "print([name for name in unused if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "[]\n"
