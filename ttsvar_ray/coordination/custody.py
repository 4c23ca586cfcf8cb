"""Who has which trajectory: the one place where seats, held parents and the workers' counts change together.

A worker is charged, for each live prompt, for the slots of the present segment that wait, run or are held
there and for the parents that it holds or must rebuild for them, as its tariff says. Parents of parents are
there until the worker is sent a task of the present segment, and are charged until then.

Actions for one worker are carried out in order. So a `Release` frees its room at once: whatever is sent
later finds it free, and whatever is in flight was counted when it was sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from ttsvar_ray.coordination.fleet import Fleet, Worker
from ttsvar_ray.coordination.live_prompt import LivePrompt
from ttsvar_ray.coordination.messages import Release, ShardTask
from ttsvar_ray.coordination.placement import Candidate, Seating


class Custody:
    """Keeps `LivePrompt` seats, worker backlogs and worker charges in step."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def candidate(self, live: LivePrompt, worker: Worker) -> Candidate:
        """Return what a worker can take of a prompt."""
        segment_index = live.population.segment.index
        tariff = worker.tariff
        room = worker.room
        charged = live.charges.get(worker.worker_id, 0)
        if charged and tariff.children_replace_parents:
            room += charged - tariff.slots[segment_index] * len(live.seated_on(worker.worker_id))
        return Candidate(
            worker_id=worker.worker_id,
            room=room,
            slot_price=tariff.slots[segment_index],
            parent_price=tariff.parent_price(segment_index),
            parents=live.parents_needed_on(worker.worker_id) if charged else frozenset(),
        )

    def sit_down(self, live: LivePrompt, seating: Seating) -> None:
        """Let slots wait on the workers that were chosen for them."""
        by_worker: dict[str, list[int]] = {}
        for slot, worker_id in seating.worker_of.items():
            by_worker.setdefault(worker_id, []).append(slot)
        for worker_id, slots in by_worker.items():
            live.seats.update(dict.fromkeys(slots, worker_id))
            self.wait(live, self._worker(worker_id), slots)
            self._recount(live, worker_id)

    def commit(self, live: LivePrompt) -> None:
        """Keep, where a prompt was started, what its trajectories there may come to."""
        population = live.population.segment.population
        for worker_id in dict.fromkeys(live.seats.values()):
            worker = self._worker(worker_id)
            live.commitments[worker_id] = worker.peak * len(live.seated_on(worker_id)) // population
            worker.committed += live.commitments[worker_id]

    def wait(self, live: LivePrompt, worker: Worker, slots: Sequence[int]) -> None:
        """Let slots that are seated on a worker wait for its next batch."""
        worker.backlog.push(live.key, live.population.segment.index, slots, alone=live.runs_alone)

    def sent(self, live: LivePrompt, worker: Worker, task: ShardTask, batch_id: int) -> None:
        """Note that a worker is sent a task of the present segment."""
        live.in_flight.update(dict.fromkeys(task.slots, batch_id))
        live.touched[worker.worker_id] = None
        if task.parent_bits:
            live.rebuilt.setdefault(worker.worker_id, set()).update(task.parent_bits)
        if live.lingering.pop(worker.worker_id, 0):
            self._recount(live, worker.worker_id)

    def take_off_backlog(self, live: LivePrompt, worker: Worker) -> bool:
        """Unseat the slots that wait on a worker; return whether there were any."""
        slots = worker.backlog.discard(live.key)
        self._stand_up(live, slots)
        return bool(slots)

    def begin_segment(self, live: LivePrompt) -> None:
        """After a selection: what is held becomes the parents, and nothing of the new segment is seated."""
        live.begin_segment()
        index = live.population.segment.index
        for worker_id, charged in list(live.charges.items()):
            tariff = self._worker(worker_id).tariff
            if not tariff.children_replace_parents:
                parents = tariff.charge(index, slots=0, parents=len(live.parents_on(worker_id)))
                live.lingering[worker_id] = charged - parents
            self._recount(live, worker_id)

    def lose(self, live: LivePrompt, worker_id: str) -> None:
        """Note that a worker is gone, with all that it ran and held."""
        live.touched.pop(worker_id, None)
        live.avoid.discard(worker_id)
        live.parent_seats = {p: seat for p, seat in live.parent_seats.items() if seat != worker_id}
        for slot in live.seated_on(worker_id):
            del live.seats[slot]
            live.in_flight.pop(slot, None)
        for kept in (live.charges, live.commitments, live.lingering, live.rebuilt):
            kept.pop(worker_id, None)

    def release(self, live: LivePrompt, worker_id: str) -> list[Release]:
        """Let a worker forget a prompt: from here on bits are all there is of what was held there."""
        unreported = set(live.population.unreported)
        self._stand_up(live, [slot for slot in live.seated_on(worker_id) if slot not in unreported])
        live.lingering.pop(worker_id, None)
        live.rebuilt.pop(worker_id, None)
        self._forget_parents(live, worker_id)
        if worker_id not in live.touched:
            return []
        if not live.runs_on(worker_id):
            del live.touched[worker_id]
        return [Release(worker_id=worker_id, prompt_key=live.key, attempt=live.attempt)]

    def release_unused(self, live: LivePrompt) -> list[Release]:
        """Release a prompt wherever nothing of it is seated any more."""
        unused = [worker_id for worker_id in live.touched if not live.seated_on(worker_id)]
        return [release for worker_id in unused for release in self.release(live, worker_id)]

    def park(self, live: LivePrompt) -> list[Release]:
        """Keep nothing but what runs right now, so that whoever has a place can go on."""
        releases = []
        for worker_id in dict.fromkeys([*live.seats.values(), *live.touched]):
            self.take_off_backlog(live, self._worker(worker_id))
            if not live.runs_on(worker_id):
                releases += self.release(live, worker_id)
        return releases

    def withdraw(self, live: LivePrompt) -> list[Release]:
        """End an attempt: nothing of it waits or is held, and what is in flight runs to no purpose."""
        live.in_flight.clear()
        for worker_id in dict.fromkeys(live.seats.values()):
            self._worker(worker_id).backlog.discard(live.key)
        self._stand_up(live, list(live.seats))
        releases = [release for worker_id in list(live.touched) for release in self.release(live, worker_id)]
        assert not live.parent_seats
        assert not live.charges
        return releases

    def _forget_parents(self, live: LivePrompt, worker_id: str) -> None:
        """Note that a worker holds no parent any more: the next task there carries their bits."""
        live.parent_seats = {p: seat for p, seat in live.parent_seats.items() if seat != worker_id}
        self._recount(live, worker_id)

    def _stand_up(self, live: LivePrompt, slots: Sequence[int]) -> None:
        left = []
        for slot in slots:
            assert slot not in live.in_flight
            left.append(live.seats.pop(slot))
        for worker_id in dict.fromkeys(left):
            self._recount(live, worker_id)

    def _recount(self, live: LivePrompt, worker_id: str) -> None:
        worker = self._worker(worker_id)
        tariff = worker.tariff
        charge = live.lingering.get(worker_id, 0) + tariff.charge(
            live.population.segment.index,
            slots=len(live.seated_on(worker_id)),
            parents=len(
                live.parents_on(worker_id)
                if tariff.children_replace_parents
                else live.parents_needed_on(worker_id)
            ),
        )
        worker.charged += charge - live.charges.pop(worker_id, 0)
        if charge:
            live.charges[worker_id] = charge
        else:
            worker.committed -= live.commitments.pop(worker_id, 0)

    def _worker(self, worker_id: str) -> Worker:
        worker = self._fleet.get(worker_id)
        assert worker is not None, f"a live prompt still refers to worker {worker_id}, which is gone"
        return worker
