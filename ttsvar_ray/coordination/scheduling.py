"""What runs next on each worker, which waiting prompts start, and when to ask for more.

A prompt starts where a batch of a first segment would otherwise not be full, never while a started prompt
has slots that are assigned to no worker: what has begun is finished first.
"""

from __future__ import annotations

from collections.abc import Iterator

from ttsvar_ray.coordination.assignment import next_chunk, spread_of
from ttsvar_ray.coordination.decisions import Decision, RunChunked, Send, Start, View
from ttsvar_ray.coordination.messages import LeasePrompts
from ttsvar_ray.coordination.placement import Candidate, assign, feasible_spread
from ttsvar_ray.coordination.workers import WorkerView


def dispatch(view: View) -> Iterator[Decision]:
    """Send whatever can be sent, breadth first: every worker has one batch before any has two.

    With two batches no worker waits for a decision.
    """
    for depth in range(view.settings.batches_in_flight):
        for worker in view.workers.usable():
            if len(worker.batches) == depth and not worker.runs_alone:
                is_idle = not worker.batches
                if view.waiting:
                    yield from _admit(
                        view, worker, worker.backlog.rows_missing(worker.limits, is_idle=is_idle)
                    )
                alone = worker.backlog.wants_alone
                segment_index, slots = worker.backlog.next_batch(
                    worker.limits, is_idle=is_idle, fits=worker.rows_that_fit
                )
                if slots:
                    yield Send(
                        worker_id=worker.worker_id,
                        segment_index=segment_index,
                        slots=slots,
                        runs_alone=alone,
                    )


def lease(view: View) -> Iterator[Decision]:
    """Keep one more round of prompts at hand than the workers run."""
    usable = view.workers.usable()
    if view.is_exhausted or view.awaits_lease or not usable:
        return
    population = view.plan.segments[0].population
    rounds = view.settings.batches_in_flight
    wanted = sum(rounds * -(-worker.limits[0] // population) for worker in usable)
    if 2 * len(view.waiting) <= wanted:
        yield LeasePrompts(count=wanted - len(view.waiting))


def _admit(view: View, worker: WorkerView, rows: int) -> Iterator[Decision]:
    """Start waiting prompts until a worker's next batch has up to `rows` more trajectories."""
    if rows <= 0 or view.unplaced or worker.dedicated_to is not None:
        return
    usable = view.workers.usable()
    population = view.plan.segments[0].population
    quota = len(view.waiting)
    if view.is_exhausted:
        # The last prompts are shared out evenly among the workers that have as little to do.
        peers = sum(len(w.batches) <= len(worker.batches) and not w.backlog for w in usable)
        quota = -(-quota // max(1, peers))
    while rows > 0 and quota > 0:
        prompt_key = next(iter(view.waiting))
        wished = spread_of(view, population)
        candidates = [_candidate(worker, population)]
        if wished > 1:
            others = (w for w in usable if w is not worker and w.dedicated_to is None)
            candidates += [_candidate(w, population) for w in sorted(others, key=lambda w: w.load)]
        width = feasible_spread(population, candidates, wished)
        if width == 0:
            if worker.reserved == 0 and not worker.batches:
                yield Start(prompt_key=prompt_key, assignment=None)
                reason = "no memory for all of its trajectories, not even on this empty worker"
                yield RunChunked(prompt_key=prompt_key, worker_id=worker.worker_id, reason=reason)
                yield from next_chunk(view, prompt_key)
            return
        share = -(-population // width)
        if share > rows and worker.backlog:
            return
        fit = [candidate for candidate in candidates if candidate.fits(share)]
        assignment = assign(range(population), parent_of={}, holder_of={}, candidates=fit, spread=width)
        assert assignment is not None, "the spread was chosen to fit"
        yield Start(prompt_key=prompt_key, assignment=assignment)
        rows -= share
        quota -= 1


def _candidate(worker: WorkerView, population: int) -> Candidate:
    return Candidate(worker_id=worker.worker_id, free=worker.slots_for_new_prompts(population))
