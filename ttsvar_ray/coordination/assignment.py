"""Which workers run a prompt's trajectories: first, after a selection, after a loss, and at the end of a run.

A prompt is assigned as a whole, all slots that must run, or not at all. One that fits nowhere is preempted:
it keeps nothing but what runs right now, its bits bring it back. Where not even an empty worker has memory
for all, the prompt gets that worker for itself and runs there in chunks: as many slots as fit, then, with
nothing held, as many again. So whoever holds memory makes progress, and no prompt is too large for a worker
that can run one trajectory.

Prompts stay where they began while the queue is deep, so that the last ones are done when the worker with
the most left to do is. So once nothing is left to start, work is stolen: idle workers take the shards that
would run last elsewhere, if rebuilding their parents and running them ends before their turn would come. And
what a slow worker runs is executed speculatively elsewhere: its prompts begin their segment anew, and its
late answer is one of an attempt that is over. Both only where the spread of a prompt is ours to choose.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from ttsvar_ray.coordination.deadlines import Deadlines
from ttsvar_ray.coordination.decisions import (
    Assign,
    Decision,
    Evict,
    Preempt,
    PromptView,
    Restart,
    RunChunked,
    Steal,
    View,
)
from ttsvar_ray.coordination.placement import Assignment, CostModel, assign, effective_spread, fitting
from ttsvar_ray.coordination.workers import Batch, WorkerView

MOST_VICTIMS = 4
"""Of the workers with the most left to do, how many are looked at for a shard that an idle one can take."""

SLOW = 2.0
"""A worker that takes so many times longer than an idle one has what it runs executed again, if that ends so
many times sooner."""

NOTHING = Assignment(worker_of={}, moved=0, reason="nothing is left to assign")


def place(view: View) -> Iterator[Decision]:
    """Assign prompts that have slots without a worker, the oldest first; preempt what fits nowhere."""
    for key in list(view.unplaced):
        prompt = view.live[key]
        assignment = find(view, prompt) if prompt.unassigned else NOTHING
        if assignment is not None:
            yield Assign(prompt_key=key, assignment=assignment)
            continue
        yield Preempt(prompt_key=key, reason="no memory for all of its trajectories")
        worker = _empty_worker(view, prompt)
        if worker is not None:
            reason = "no memory for all of its trajectories, not even on this empty worker"
            yield RunChunked(prompt_key=key, worker_id=worker.worker_id, reason=reason)
            yield from next_chunk(view, key)
    for key in list(view.chunked):
        yield from next_chunk(view, key)


def spread_of(view: View, rows: int) -> int:
    """Return how many workers a prompt with `rows` slots to assign is sharded over now."""
    num_workers = len(view.workers.usable())
    num_prompts = len(view.live) + len(view.waiting)
    if not view.is_exhausted:
        # Prompts that can still be leased keep the others busy as well as those at hand.
        num_prompts = max(num_prompts, num_workers)
    return effective_spread(view.settings.spread, num_prompts=num_prompts, num_workers=num_workers, rows=rows)


def find(view: View, prompt: PromptView) -> Assignment | None:
    """Return where a prompt's unassigned slots go, or None where there is no memory for all of them now.

    The first of `STRATEGIES` that finds an assignment decides.
    """
    search = _Search(view, prompt)
    if not search.workers:
        return None
    found = (strategy(search) for strategy in STRATEGIES)
    return next((assignment for assignment in found if assignment is not None), None)


class _Search:
    """What the strategies look at: a prompt's unassigned slots, and the workers that may have them.

    Attributes:
        spread: workers to share the slots over.
        holder_of: worker that holds each slot's parent.
        near: workers that hold a parent, or run or hold another slot.
        workers: that may be assigned something.
    """

    def __init__(self, view: View, prompt: PromptView) -> None:
        self.prompt = prompt
        self.settings = view.settings
        workers = view.workers.usable()
        if view.chunked:
            workers = [w for w in workers if w.dedicated_to in (None, prompt.key)]
        self.workers = workers
        self.slots = prompt.unassigned
        self.holder_of = prompt.holder_of(self.slots)
        self.near = {*self.holder_of.values(), *prompt.assigned.values()}
        self.spread = spread_of(view, len(self.slots))
        self._view = view

    @functools.cached_property
    def in_order(self) -> list[WorkerView]:
        """All workers: those that did not fail the prompt, those near, those with little to do first."""
        avoid, near = self.prompt.avoid, self.near
        return sorted(self.workers, key=lambda w: (w.worker_id in avoid, w.worker_id not in near, w.load))

    def among(self, workers: Sequence[WorkerView]) -> Assignment | None:
        """Return the cheapest assignment to some workers; without known costs that of the whole spread."""
        prompt, costs = self.prompt, self._view.costs
        candidates = [prompt.candidate(worker) for worker in workers]
        parent_of = prompt.parent_of(self.slots)
        weighs = costs is not None and parent_of and self.spread > 1
        assignments = [
            assignment
            for spread in (range(1, self.spread + 1) if weighs else (self.spread,))
            if (
                assignment := assign(
                    self.slots,
                    parent_of=parent_of,
                    holder_of=self.holder_of,
                    candidates=candidates,
                    spread=spread,
                )
            )
            is not None
        ]
        if not assignments:
            return None
        if not weighs or costs is None:
            return assignments[0]
        return costs.cheapest(
            assignments,
            segment_index=prompt.segment.index,
            parent_of=parent_of,
            held={candidate.worker_id: candidate.parents for candidate in candidates},
            workers={worker.worker_id: worker for worker in workers},
        )


def _at_parents(search: _Search) -> Assignment | None:
    """Where the parents are, if all are held and nothing moves: no look at all workers in a deep queue."""
    wanted = search.near - search.prompt.avoid
    near = [w for w in search.workers if w.worker_id in wanted]
    if len(search.holder_of) < len(search.slots) or search.spread > len(near):
        return None
    assignment = search.among(sorted(near, key=lambda w: w.load))
    return assignment if assignment is not None and (search.spread > 1 or assignment.moved == 0) else None


def _near_or_idle(search: _Search) -> Assignment | None:
    """Where a replay pays: near, or on workers that would otherwise do nothing. Only where spread is ours."""
    if search.settings.spread != "auto" or not search.holder_of:
        return None
    return search.among([w for w in search.in_order if w.worker_id in search.near or w.is_idle])


def _not_avoided(search: _Search) -> Assignment | None:
    """On workers that did not fail the prompt, if any did."""
    if not search.prompt.avoid:
        return None
    willing = [w for w in search.in_order if w.worker_id not in search.prompt.avoid]
    return search.among(willing) if willing else None


def _anywhere(search: _Search) -> Assignment | None:
    """On any worker, those that failed the prompt last."""
    return search.among(search.in_order)


STRATEGIES = (_at_parents, _near_or_idle, _not_avoided, _anywhere)
"""What is tried, in this order, to find workers for a prompt."""


def _empty_worker(view: View, prompt: PromptView) -> WorkerView | None:
    """Return a worker that has memory reserved for nothing but this prompt, if there is one."""
    empty = [
        worker
        for worker in view.workers.usable()
        if worker.dedicated_to is None and worker.reserved == prompt.reserved.get(worker.worker_id, 0)
    ]
    return min(empty, key=lambda w: w.worker_id in prompt.avoid) if empty else None


def next_chunk(view: View, prompt_key: str) -> Iterator[Decision]:
    """Assign as much as fits once nothing of the chunk before is left to run."""
    prompt = view.live[prompt_key]
    assert prompt.chunked_on is not None
    worker = view.workers[prompt.chunked_on]
    if not prompt.unassigned or set(prompt.unreported).intersection(prompt.assigned):
        return
    yield Evict(prompt_key=prompt_key, worker_id=worker.worker_id, reason="makes way for the next chunk")
    parent_of = prompt.parent_of(prompt.unassigned)
    # Siblings together; none at all while a batch of before fills the memory.
    slots = sorted(prompt.unassigned, key=lambda slot: (parent_of.get(slot, 0), slot))
    chunk = fitting(slots, parent_of=parent_of, candidate=prompt.candidate(worker))
    if chunk:
        worker_of = dict.fromkeys(sorted(chunk), worker.worker_id)
        yield Assign(
            prompt_key=prompt_key,
            assignment=Assignment(worker_of=worker_of, moved=0, reason="the next chunk"),
        )


def rebalance(view: View, deadlines: Deadlines) -> Iterator[Decision]:
    """Once nothing is left to start, give idle workers what waits behind others or runs on slow ones."""
    costs = view.costs
    if not view.is_exhausted or view.waiting or view.unplaced or view.chunked:
        return
    if costs is None or view.settings.spread != "auto":
        return
    usable = view.workers.usable()
    idle = sorted((w for w in usable if w.is_idle), key=lambda w: w.slowdown)
    if not idle:
        return
    restarts = _execute_again(view, costs, idle, deadlines)
    yield from restarts
    if restarts:
        return
    for thief in idle:
        victims = heapq.nlargest(
            MOST_VICTIMS,
            (w for w in usable if w.backlog and not w.backlog.wants_alone),
            key=lambda w: w.load,
        )
        steals = (_steal(view, costs, thief, victim) for victim in victims)
        steal = next((steal for steal in steals if steal is not None), None)
        if steal is None:
            return
        yield steal


def _execute_again(
    view: View, costs: CostModel, idle: Sequence[WorkerView], deadlines: Deadlines
) -> list[Restart]:
    """Return which prompts of the slowest worker begin their segment anew."""
    slow = [
        worker
        for worker in view.workers.usable()
        if worker.batches and not worker.runs_alone and worker.slowdown >= SLOW * idle[0].slowdown
    ]
    if not slow:
        return []
    worker = max(slow, key=lambda w: w.load)
    there = -deadlines.elapsed(worker)
    chosen: list[PromptView] = []
    for batch in worker.batches.values():
        there += worker.slowdown * worker.weights[batch.segment_index] * batch.num_rows
        sooner = [
            prompt
            for prompt in _whole_prompts(view, worker, batch)
            if SLOW * _cost_on(costs, prompt, prompt.unreported, idle[0], held=()) < there
        ]
        # What it gets to last comes first.
        chosen = sooner + chosen
    reason = f"begun anew: {worker.worker_id} takes {worker.slowdown:.2g} times the usual"
    # As many as there are others to run them.
    return [
        Restart(prompt_key=prompt.key, away_from=worker.worker_id, reason=reason, is_speculative=True)
        for prompt in chosen[: len(idle)]
    ]


def _whole_prompts(view: View, worker: WorkerView, batch: Batch) -> list[PromptView]:
    """Return the prompts of a batch that run on its worker alone and were not taken from it before."""
    found = (view.live.get(task.prompt.key) for task in batch.tasks)
    return [
        prompt
        for prompt in found
        if prompt is not None
        and worker.worker_id not in prompt.avoid
        and all(prompt.in_flight.get(slot) == batch.batch_id for slot in prompt.unreported)
    ]


def _steal(view: View, costs: CostModel, thief: WorkerView, victim: WorkerView) -> Steal | None:
    """Return the shard that would run last on a worker, if an idle one is done with it sooner."""
    key, slots = victim.backlog.last()
    prompt = view.live[key]
    if thief.worker_id in prompt.avoid:
        return None
    there = victim.load
    here = _cost_on(costs, prompt, slots, thief, held=prompt.parents_on(thief.worker_id))
    if here >= there:
        return None
    assignment = assign(
        slots,
        parent_of=prompt.parent_of(slots),
        holder_of={},
        candidates=[prompt.candidate(thief)],
        spread=1,
    )
    if assignment is None:
        return None
    reason = f"{len(slots)} taken over by an idle worker; {here:.3g} s expected, {there:.3g} s there"
    return Steal(prompt_key=key, victim=victim.worker_id, assignment=replace(assignment, reason=reason))


def _cost_on(
    costs: CostModel, prompt: PromptView, slots: Sequence[int], worker: WorkerView, *, held: Collection[int]
) -> float:
    """Return when one worker would be done with some slots of the present segment."""
    return costs.cost_of(
        dict.fromkeys(slots, worker.worker_id),
        segment_index=prompt.segment.index,
        parent_of=prompt.parent_of(slots),
        held={worker.worker_id: held},
        workers={worker.worker_id: worker},
        to_the_end=False,
    )
