"""The whole search in this process, without ray: many prompts by the same coordinator and engines as on a
cluster, or one prompt by the loop of the paper."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
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
    SegmentReport,
    ShardFailure,
    ShardTask,
    WorkerJoined,
)
from ttsvar_ray.coordination.settings import CoordinatorSettings, Workload
from ttsvar_ray.engine.engine import Engine
from ttsvar_ray.errors import CannotStartError, TtsVarError
from ttsvar_ray.results import PackedBits, PromptFailure, PromptResult, ResultImage, SelectionRecord
from ttsvar_ray.search.loop import Found, Past, Round, Seen, search
from ttsvar_ray.search.plan import Plan, Segment
from ttsvar_ray.search.rounds import rejection
from ttsvar_ray.search.selection import abandoned_record, selection_record
from ttsvar_ray.types import Int64Array, Prompt


def run_local(
    prompts: Iterable[Prompt],
    *,
    plan: Plan,
    engines: Sequence[Engine],
    run_seed: int,
    settings: CoordinatorSettings,
    workload: Workload | None = None,
) -> Iterator[PromptResult | PromptFailure]:
    """Search images for prompts, one engine call at a time.

    Args:
        prompts: read as the coordinator asks for them, never all at once.
        engines: stand for workers; one is enough, several let tests shard populations.
        run_seed: names the random streams of the selections; the engines must have the same.
        workload: what the plan costs, where the engines' memory limits how much is under way.

    Yields:
        One outcome per prompt, in the order in which they finish.

    Raises:
        CannotStartError: an engine without memory for one trajectory.
    """
    if not engines:
        raise ValueError("engines: expected at least one, got none")
    workers = {f"local-{index}": engine for index, engine in enumerate(engines)}
    coordinator = Coordinator(plan=plan, run_seed=run_seed, settings=settings, workload=workload)
    source = iter(prompts)
    actions: deque[Action] = deque()
    for worker_id, engine in workers.items():
        memory = None if workload is None else engine.settings.memory_bytes
        rows = engine.settings.micro_batch_rows
        joined = WorkerJoined(worker_id=worker_id, rows=rows, memory_bytes=memory)
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
            case Refuse():
                raise CannotStartError(action.reason)
            case Abandon():
                raise AssertionError(f"without time nothing is late: {action}")
            case _:
                assert_never(action)
    assert over == leased, f"the coordinator stopped with {leased - over} of {leased} prompts unfinished"


def _take(source: Iterator[Prompt], count: int) -> tuple[tuple[Prompt, ...], Iterator[Prompt], bool]:
    """Take up to `count` prompts; also return the rest, and whether it is empty."""
    taken = tuple(itertools.islice(source, count))
    following = tuple(itertools.islice(source, 1))
    return taken, itertools.chain(following, source), not following


def search_prompt(
    prompt: Prompt, *, plan: Plan, engine: Engine, run_seed: int, loop: Callable[..., Found] = search
) -> PromptResult | PromptFailure:
    """Search images for one prompt on one engine, with a loop over scales: no coordinator, one try.

    Args:
        plan: what to run; the engine was built for it.
        run_seed: names the random streams of the selections; the engine must have the same.
        loop: Algorithm 1, or one of the same arguments in its place.

    Returns:
        All images by rank, the same as those of any other way to run the prompt; or why there are none.

    Raises:
        ValueError, TypeError: a loop of one's own that asks for what cannot be.
    """
    reports: dict[int, list[SegmentReport]] = {}
    trajectories = [0] * len(plan.segments)

    def run_segment(segment: Segment, ancestor_index: Int64Array, round_index: int = 0) -> Seen:
        ancestors, ran = np.asarray(ancestor_index), reports.setdefault(round_index, [])
        if segment.index > 0:
            _check_ancestors(segment, ancestors, ran)
        task = ShardTask(
            prompt=prompt,
            attempt=1 + round_index,
            segment_index=segment.index,
            slots=tuple(range(segment.population)),
            parent_slots=tuple(ancestors.tolist()) if segment.index > 0 else (),
            round_index=round_index,
        )
        # A loop of one's own may rank images by something else than their rewards.
        (report,) = engine.run_segment([task], every_file=True)
        if isinstance(report, ShardFailure):
            raise _FailedSegmentError(report.error)
        ran.append(report)
        trajectories[segment.index] += segment.population
        shape = (segment.population, len(segment.scored_scales), plan.reward_members)
        return Seen(
            scores=report.rewards.reshape(shape),
            features=report.features,
            log_likelihood=report.log_likelihood,
        )

    try:
        found = loop(plan, run_segment, run_seed=run_seed, prompt_key=prompt.key)
    except _FailedSegmentError as error:
        return PromptFailure(prompt=prompt, attempts=1, errors=(str(error),))
    except TtsVarError as error:
        return PromptFailure(prompt=prompt, attempts=1, errors=(f"{type(error).__name__}: {error}",))
    finally:
        for round_index in reports:  # a loop of one's own may run more of them than the plan has
            engine.release(prompt.key, 1 + round_index)
    if not isinstance(found, Found):
        raise TypeError(f"loop: expected a Found of search.loop, got {type(found).__name__}")
    images = []
    for rank, (place, slot) in enumerate(found.ranking):
        one = found.rounds[place]
        own = reports[one.end.round_index]
        lineage = one.past.lineage[slot].tolist()
        history = tuple(one.past.reward_history[slot].tolist())
        images.append(
            ResultImage(
                rank=rank,
                image=own[-1].images[slot],
                reward=history[-1],
                reward_history=history,
                member_rewards=tuple(own[-1].rewards[slot, -plan.reward_members :].tolist()),
                lineage=tuple(lineage),
                bits=_bits(own, lineage),
                round_index=one.end.round_index,
            )
        )
    ran = [report for own in reports.values() for report in own]
    return PromptResult(
        prompt=prompt,
        images=tuple(images),
        trace=tuple(
            record
            for one in found.rounds
            for record in _records(prompt.key, plan, one, reports[one.end.round_index])
        ),
        attempts=1,
        seconds=sum(report.seconds for report in ran),
        counters=dict(sorted(sum((Counter(report.counters) for report in ran), Counter()).items())),
        rounds=len(reports),
        stopped=found.reason.value,
        trajectories=tuple(trajectories),
    )


def _check_ancestors(segment: Segment, ancestors: Int64Array, before: Sequence[SegmentReport]) -> None:
    """Raise `ValueError` for a loop of one's own that goes on from trajectories that there are not."""
    where = f"loop: run_segment(scales {segment.first_scale} to {segment.last_scale})"
    if not before or before[-1].segment_index != segment.index - 1:
        raise ValueError(f"{where}: expected the scales before to have run right before; run all in order")
    last, is_whole = len(before[-1].slots) - 1, ancestors.dtype.kind in "iu"
    if (
        not is_whole
        or ancestors.shape != (segment.population,)
        or ancestors.min() < 0
        or ancestors.max() > last
    ):
        raise ValueError(
            f"{where}: ancestor_index: expected {segment.population} slots of the population before, whole "
            f"numbers from 0 to {last}, got {ancestors.tolist()}"
        )


def _bits(reports: Sequence[SegmentReport], lineage: Sequence[int]) -> PackedBits:
    """Return the bits of a trajectory, whose ancestors' slots are in `lineage`, the own one last."""
    own = reports[: len(lineage)]
    return sum((report.bits[at] for report, at in zip(own, lineage, strict=True)), ())


def _records(
    prompt_key: str, plan: Plan, one: Round, reports: Sequence[SegmentReport]
) -> Iterator[SelectionRecord]:
    """Yield the rows of the trace for one round."""

    def with_bits(record: SelectionRecord, past: Past) -> SelectionRecord:
        return replace(record, bits=tuple(_bits(reports, slots) for slots in past.lineage.tolist()))

    round_index = one.end.round_index
    for segment, past, choice in zip(one.segments, one.pasts, one.choices, strict=False):
        assert segment.selection is not None
        record = selection_record(
            prompt_key, segment.selection, past.reward_history, choice=choice, round_index=round_index
        )
        yield with_bits(record, past)
    last = one.segments[-1]
    if last.selection is not None:
        missed = rejection(plan, last.last_scale, one.past.reward_history)
        assert missed is not None
        record = abandoned_record(
            prompt_key, last.selection, one.past.latest, missed=missed, round_index=round_index
        )
        yield with_bits(record, one.past)


class _FailedSegmentError(Exception):
    """A segment that did not finish, with the engine's reason."""
