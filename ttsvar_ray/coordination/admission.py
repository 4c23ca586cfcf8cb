"""Which waiting prompts start, where, and when to ask for more.

A prompt starts where a batch of a first segment would otherwise not be full, never while a started prompt
has no place: what has begun is finished first.
"""

from __future__ import annotations

from collections.abc import Sequence

from ttsvar_ray.coordination.fleet import Worker
from ttsvar_ray.coordination.messages import LeasePrompts
from ttsvar_ray.coordination.placement import Candidate, feasible_spread, seat
from ttsvar_ray.coordination.seating import Seater
from ttsvar_ray.coordination.state import State


class Admission:
    """Starts prompts and leases them."""

    def __init__(self, state: State, seater: Seater) -> None:
        self._state = state
        self._seater = seater
        self._population = state.plan.segments[0].population
        self._awaits_lease = False

    def answered(self) -> None:
        """Note that a lease was answered."""
        self._awaits_lease = False

    def admit(self, worker: Worker, rows: int) -> None:
        """Start waiting prompts until a worker's next batch has up to `rows` more trajectories."""
        state = self._state
        if rows <= 0 or not state.waiting or state.unplaced or worker.reserved_for is not None:
            return
        usable = state.fleet.usable()
        quota = len(state.waiting)
        if state.is_exhausted:
            # The last prompts are shared out evenly among the workers that have as little to do.
            peers = sum(len(w.batches) <= len(worker.batches) and not w.backlog for w in usable)
            quota = -(-quota // max(1, peers))
        while rows > 0 and quota > 0:
            wished = self._seater.spread(self._population)
            candidates = [self._candidate(worker)]
            if wished > 1:
                others = (w for w in usable if w is not worker and w.reserved_for is None)
                candidates += [self._candidate(w) for w in sorted(others, key=lambda w: w.load)]
            width = feasible_spread(self._population, candidates, wished)
            if width == 0:
                self._admit_piecemeal(worker)
                return
            share = -(-self._population // width)
            if share > rows and worker.backlog:
                return
            self._start(candidates, width, share)
            rows -= share
            quota -= 1

    def lease(self) -> None:
        """Keep one more round of prompts at hand than the workers run."""
        state = self._state
        usable = state.fleet.usable()
        if state.is_exhausted or self._awaits_lease or not usable:
            return
        rounds = state.settings.batches_in_flight
        wanted = sum(rounds * -(-worker.limits[0] // self._population) for worker in usable)
        if 2 * len(state.waiting) <= wanted:
            self._awaits_lease = True
            state.actions.append(LeasePrompts(count=wanted - len(state.waiting)))

    def _start(self, candidates: Sequence[Candidate], width: int, share: int) -> None:
        state = self._state
        live = state.start_next()
        roomy = [candidate for candidate in candidates if candidate.has_room_for(share)]
        seating = seat(live.unseated, parent_of={}, home_of={}, candidates=roomy, spread=width)
        assert seating is not None, "the spread was chosen to fit"
        state.custody.sit_down(live, seating)
        state.custody.commit(live)

    def _admit_piecemeal(self, worker: Worker) -> None:
        """Start a prompt on an empty worker that has no room for it."""
        if worker.charged == 0 and not worker.batches:
            live = self._state.start_next()
            self._state.displace(live)
            self._seater.begin_piecemeal(live, worker)

    def _candidate(self, worker: Worker) -> Candidate:
        return Candidate(worker_id=worker.worker_id, room=worker.seats_for_new_prompts(self._population))
