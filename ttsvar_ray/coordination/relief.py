"""The end of a run: a worker that has nothing to do takes over what waits or crawls elsewhere.

Prompts stay where they began while the queue is deep, so that the last ones are done when the worker with
the most left to do is: the one with the longest prompts, or the slowest machine. Once nothing is left to
start, idle workers take the shards that would run last elsewhere, if rebuilding their parents and running
them ends before their turn would come. From a worker that is known to be slow they take what it runs, too:
its prompts begin their segment anew elsewhere, and its late answer is one of an attempt that is over.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ttsvar_ray.coordination.deadlines import Deadlines
from ttsvar_ray.coordination.fleet import Batch, Worker
from ttsvar_ray.coordination.live_prompt import LivePrompt
from ttsvar_ray.coordination.placement import seat
from ttsvar_ray.coordination.state import State

ASKED_WORKERS = 4
"""Of those with the most left to do, how many are asked for a shard that can move."""

SLOW = 2.0
"""A worker that takes so many times longer than an idle one has what it runs taken away, if that ends so many
times sooner."""


class Relief:
    """Moves what waits to workers that are idle; only where the spread of a prompt is ours to choose."""

    def __init__(self, state: State, deadlines: Deadlines) -> None:
        self._state = state
        self._deadlines = deadlines

    def relieve(self) -> bool:
        """Give idle workers something to do; return whether anything moved."""
        state = self._state
        if not state.is_exhausted or state.waiting or state.unplaced or state.piecemeal:
            return False
        if state.workload is None or state.settings.spread != "auto":
            return False
        usable = state.fleet.usable()
        idle = sorted((w for w in usable if w.is_idle), key=lambda w: w.pace)
        if not idle:
            return False
        moved = self._take_back(idle)
        if moved:
            return True
        for helper in idle:
            burdened = heapq.nlargest(
                ASKED_WORKERS,
                (w for w in usable if w.backlog and not w.backlog.wants_alone),
                key=lambda w: w.load,
            )
            if not any(self._take_over(helper, worker) for worker in burdened):
                break
            moved = True
        return moved

    def _take_back(self, idle: Sequence[Worker]) -> bool:
        """Let prompts that run on the slowest worker begin their segment anew; return whether any does."""
        state = self._state
        assert state.workload is not None
        slow = [
            worker
            for worker in state.fleet.usable()
            if worker.batches and not worker.runs_alone and worker.pace >= SLOW * idle[0].pace
        ]
        if not slow:
            return False
        worker = max(slow, key=lambda w: w.load)
        there = -self._deadlines.elapsed(worker)
        chosen: list[LivePrompt] = []
        for batch in worker.batches.values():
            there += worker.pace * worker.weights[batch.segment_index] * batch.num_rows
            whole = self._whole_prompts(worker, batch)
            # What it gets to last comes first.
            chosen[:0] = [live for live in whole if self._ends_sooner(live, idle[0], there)]
        # As many as there are others to run them.
        for live in chosen[: len(idle)]:
            live.avoid.add(worker.worker_id)
            state.actions += state.custody.withdraw(live)
            live.attempt += 1
            state.displace(live)
            _record(live, {}, f"begun anew: {worker.worker_id} takes {worker.pace:.2g} times the usual")
        return bool(chosen)

    def _whole_prompts(self, worker: Worker, batch: Batch) -> list[LivePrompt]:
        """Return the prompts of a batch that sit on its worker alone and were not taken from it before."""
        found = (self._state.live.get(task.prompt.key) for task in batch.tasks)
        return [
            live
            for live in found
            if live is not None
            and worker.worker_id not in live.avoid
            and all(live.in_flight.get(slot) == batch.batch_id for slot in live.population.unreported)
        ]

    def _ends_sooner(self, live: LivePrompt, helper: Worker, there: float) -> bool:
        population = live.population
        parents = len(set(live.parent_of(population.unreported).values()))
        assert self._state.workload is not None
        here = self._state.workload.seconds(population.segment.index, len(population.unreported), parents)
        return SLOW * helper.pace * here < there

    def _take_over(self, helper: Worker, burdened: Worker) -> bool:
        """Move the shard that would run last on a worker, if that ends sooner."""
        state = self._state
        assert state.workload is not None
        key, slots = burdened.backlog.last()
        live = state.live[key]
        if helper.worker_id in live.avoid:
            return False
        parent_of = live.parent_of(slots)
        rebuilt = len(set(parent_of.values()) - live.parents_on(helper.worker_id))
        there = burdened.load
        here = helper.pace * state.workload.seconds(live.population.segment.index, len(slots), rebuilt)
        if here >= there:
            return False
        candidate = state.custody.candidate(live, helper)
        seating = seat(slots, parent_of=parent_of, home_of={}, candidates=[candidate], spread=1)
        if seating is None:
            return False
        state.custody.take_off_backlog(live, burdened)
        state.custody.sit_down(live, seating)
        state.actions += state.custody.release_unused(live)
        why = f"{len(slots)} taken over by an idle worker; {here:.3g} s expected, {there:.3g} s there"
        _record(live, seating.worker_of, why)
        return True


def _record(live: LivePrompt, worker_of: Mapping[int, str], reason: str) -> None:
    """Write a move down with the selection that its slots come from; the first segment has none."""
    trace = live.population.trace
    if not trace:
        return
    record = trace[-1]
    placement = list(record.placement)
    for slot, worker_id in worker_of.items():
        if slot < len(placement):
            placement[slot] = worker_id
    trace[-1] = replace(
        record,
        placement=tuple(placement),
        moved=record.moved + len(worker_of),
        reason="; ".join(filter(None, [record.reason, reason])),
    )
