"""Places for trajectories: who sits where, who waits for room, who runs piece by piece.

A prompt gets places for all slots that must run, or for none. One that finds none is parked: it keeps
nothing but what runs right now, its bits bring it back. Where not even an empty worker has room for all,
the prompt gets that worker for itself and runs there piece by piece: as many slots as fit, then, with
nothing held, as many again. So whoever holds room makes progress, and no prompt is too large for a worker
that can run one trajectory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ttsvar_ray.coordination.fleet import Worker
from ttsvar_ray.coordination.live_prompt import LivePrompt
from ttsvar_ray.coordination.migration import Migration
from ttsvar_ray.coordination.placement import Seating, effective_spread, fitting, seat
from ttsvar_ray.coordination.state import State


class Seater:
    """Finds places."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._migration = None if state.workload is None else Migration(state.plan, state.workload)

    def spread(self, rows: int) -> int:
        """Return how many workers a prompt with `rows` slots to place is sharded over now."""
        state = self._state
        num_workers = len(state.fleet.usable())
        num_prompts = len(state.live) + len(state.waiting)
        if not state.is_exhausted:
            # Prompts that can still be leased keep the others busy as well as those at hand.
            num_prompts = max(num_prompts, num_workers)
        return effective_spread(
            state.settings.spread, num_prompts=num_prompts, num_workers=num_workers, rows=rows
        )

    def find(self, live: LivePrompt) -> Seating | None:
        """Decide where a prompt's unseated slots go, or that there is no room for all of them now."""
        usable = self._state.fleet.usable()
        if self._state.piecemeal:
            usable = [w for w in usable if w.reserved_for in (None, live.key)]
        if not usable:
            return None
        slots = live.unseated
        homes = live.homes(slots)
        spread = self.spread(len(slots))
        near = {*homes.values(), *live.seats.values()}
        at_home = [w for w in usable if w.worker_id in near and w.worker_id not in live.avoid]
        if len(homes) == len(slots) and spread <= len(at_home):
            # The usual case of a deep queue, without a look at every worker.
            at_home.sort(key=lambda w: w.load)
            seating = self._seat(live, slots, homes, at_home, spread)
            if seating is not None and (spread > 1 or seating.moved == 0):
                return seating
        order = sorted(usable, key=lambda w: (w.worker_id in live.avoid, w.worker_id not in near, w.load))
        if self._state.settings.spread == "auto" and homes:
            # Widening is worth a replay only where a worker would otherwise do nothing.
            idle = [w for w in order if w.worker_id in near or w.is_idle]
            seating = self._seat(live, slots, homes, idle, spread)
            if seating is not None:
                return seating
        if live.avoid:
            willing = [w for w in order if w.worker_id not in live.avoid]
            seating = self._seat(live, slots, homes, willing, spread) if willing else None
            if seating is not None:
                return seating
        return self._seat(live, slots, homes, order, spread)

    def place_unplaced(self) -> None:
        """Find places for those that have none; park those that still find none."""
        state = self._state
        for key in list(state.unplaced):
            live = state.live[key]
            seating = self.find(live) if live.unseated else None
            if seating is not None:
                state.custody.sit_down(live, seating)
                del state.unplaced[key]
            elif live.unseated:
                state.actions += state.custody.park(live)
                worker = self._empty_worker(live)
                if worker is not None:
                    self.begin_piecemeal(live, worker)
            else:
                del state.unplaced[key]
        for key in list(state.piecemeal):
            self._next_piece(state.live[key])

    def begin_piecemeal(self, live: LivePrompt, worker: Worker) -> None:
        """Give a prompt a worker for itself."""
        self._state.begin_piecemeal(live, worker)
        self._next_piece(live)

    def _empty_worker(self, live: LivePrompt) -> Worker | None:
        """Return a worker that nothing is promised to but what it runs of this prompt, if there is one."""
        empty = [
            worker
            for worker in self._state.fleet.usable()
            if worker.reserved_for is None and worker.charged == live.charges.get(worker.worker_id, 0)
        ]
        return min(empty, key=lambda w: w.worker_id in live.avoid) if empty else None

    def _next_piece(self, live: LivePrompt) -> None:
        """Seat as much as fits once nothing of the piece before is left to run."""
        state = self._state
        assert live.piecemeal_on is not None
        worker = state.fleet.get(live.piecemeal_on)
        assert worker is not None
        if not live.unseated or set(live.population.unreported).intersection(live.seats):
            return
        state.actions += state.custody.release(live, worker.worker_id)
        parent_of = live.parent_of(live.unseated)
        order = sorted(live.unseated, key=lambda slot: (parent_of.get(slot, 0), slot))
        # Siblings together; none at all while a batch of before fills the memory.
        piece = fitting(order, parent_of=parent_of, candidate=state.custody.candidate(live, worker))
        if piece:
            placed = Seating(worker_of=dict.fromkeys(sorted(piece), worker.worker_id), moved=0, reason="")
            state.custody.sit_down(live, placed)

    def _seat(
        self,
        live: LivePrompt,
        slots: Sequence[int],
        homes: Mapping[int, str],
        workers: Sequence[Worker],
        spread: int,
    ) -> Seating | None:
        candidates = [self._state.custody.candidate(live, worker) for worker in workers]
        parent_of = live.parent_of(slots)
        weighs = self._migration is not None and parent_of and spread > 1
        seatings = [
            seating
            for width in (range(1, spread + 1) if weighs else (spread,))
            if (
                seating := seat(
                    slots, parent_of=parent_of, home_of=homes, candidates=candidates, spread=width
                )
            )
            is not None
        ]
        if not seatings:
            return None
        if not weighs:
            return seatings[0]
        assert self._migration is not None
        return self._migration.choose(
            live.population.segment.index,
            seatings,
            parent_of=parent_of,
            candidates=candidates,
            wait={worker.worker_id: worker.load for worker in workers},
            pace={worker.worker_id: worker.pace for worker in workers},
        )
