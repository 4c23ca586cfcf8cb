"""The whole search in this process: the same coordinator and engines as a cluster, without ray."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from typing_extensions import assert_never

from ttsvar_ray.coordination.coordinator import Coordinator
from ttsvar_ray.coordination.messages import (
    Abandon,
    Action,
    BatchDone,
    Emit,
    LeasePrompts,
    PromptsLeased,
    Refuse,
    Release,
    RunBatch,
    WorkerJoined,
)
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.engine.engine import Engine
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.types import Prompt


def run_local(
    prompts: Iterable[Prompt],
    *,
    plan: Plan,
    engines: Sequence[Engine],
    run_seed: int,
    settings: CoordinatorSettings,
) -> Iterator[PromptResult | PromptFailure]:
    """Search images for prompts, one engine call at a time.

    Args:
        prompts: read as the coordinator asks for them, never all at once.
        plan: what to run; the engines were built for it.
        engines: stand for workers; one is enough, several let tests shard populations.
        run_seed: names the random streams of the selections; the engines must have the same.
        settings: policies of the coordinator.

    Yields:
        One outcome per prompt, in the order in which they finish.
    """
    if not engines:
        raise ValueError("engines: expected at least one, got none")
    workers = {f"local-{index}": engine for index, engine in enumerate(engines)}
    coordinator = Coordinator(plan=plan, run_seed=run_seed, settings=settings)
    source = iter(prompts)
    actions: deque[Action] = deque()
    for worker_id, engine in workers.items():
        joined = WorkerJoined(worker_id=worker_id, rows=engine.settings.micro_batch_rows)
        actions.extend(coordinator.handle(joined))

    leased = 0
    over = 0
    while actions:
        action = actions.popleft()
        match action:
            case LeasePrompts(count=count):
                batch, source, is_last = _take(source, count)
                leased += len(batch)
                actions.extend(coordinator.handle(PromptsLeased(prompts=batch, is_last=is_last)))
            case RunBatch(worker_id=worker_id, batch_id=batch_id, tasks=tasks):
                results = tuple(workers[worker_id].run_segment(tasks))
                done = BatchDone(worker_id=worker_id, batch_id=batch_id, results=results)
                actions.extend(coordinator.handle(done))
            case Release():
                workers[action.worker_id].release(action.prompt_key, action.attempt)
            case Emit(outcome=outcome):
                over += 1
                yield outcome
            case Refuse() | Abandon():
                raise AssertionError(f"without a workload and without time: {action}")
            case _:
                assert_never(action)
    assert over == leased, f"the coordinator stopped with {leased - over} of {leased} prompts unfinished"


def _take(source: Iterator[Prompt], count: int) -> tuple[tuple[Prompt, ...], Iterator[Prompt], bool]:
    """Take up to `count` prompts; also return the rest, and whether it is empty."""
    taken = tuple(itertools.islice(source, count))
    following = tuple(itertools.islice(source, 1))
    return taken, itertools.chain(following, source), not following
