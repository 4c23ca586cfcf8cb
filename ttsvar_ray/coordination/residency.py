"""Which worker holds, runs or awaits which trajectory: everything that a coordinator remembers.

This is the one place that writes prompts and workers: decisions of policies are carried out by
`Residency.apply`, and the coordinator tells what events say by the other methods. Policies and tests see it
as a `decisions.View`.

On a worker, memory is reserved for each live prompt: for the slots of the present segment that wait, run or
are held there and for the parents that it holds or must rebuild for them, as its memory model says. Parents
of parents are there until the worker is sent a task of the present segment, and are counted until then.
Actions for one worker are carried out in order. So a `Release` frees its memory at once: whatever is sent
later finds it free, and whatever is in flight was counted when it was sent.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from typing_extensions import assert_never

from ttsvar_ray.coordination.decisions import (
    Assign,
    Blame,
    Decision,
    Evict,
    GiveUp,
    Preempt,
    Requeue,
    Restart,
    RunChunked,
    Send,
    Shrink,
    Start,
    Steal,
)
from ttsvar_ray.coordination.live_prompt import LivePrompt
from ttsvar_ray.coordination.messages import Abandon, Action, Emit, LeasePrompts, Release, RunBatch, ShardTask
from ttsvar_ray.coordination.placement import Assignment, CostModel
from ttsvar_ray.coordination.population import Population
from ttsvar_ray.coordination.settings import CoordinatorSettings, Workload
from ttsvar_ray.coordination.workers import Batch, Worker, Workers, WorkerState
from ttsvar_ray.results import PromptFailure
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.selection import Select
from ttsvar_ray.types import Prompt

logger = logging.getLogger(__name__)


class Residency:
    """The prompts, the workers, and the actions of the present event.

    Attributes:
        costs: what assignments cost; None where the workload is not known.
        waiting: leased and not started, by key, in order.
        is_exhausted: whether no prompt is left to lease.
        awaits_lease: whether a request for prompts is not answered yet.
        live: started and not emitted, by key.
        unplaced: of these, those with slots that must run and are assigned to no worker, the oldest first.
        chunked: of these, those that run in chunks on a worker of their own.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        run_seed: int,
        settings: CoordinatorSettings,
        workload: Workload | None = None,
        selections: Select | None = None,
    ) -> None:
        """Start without workers and without prompts; arguments as `coordinator.Coordinator`."""
        self.plan = plan
        self.settings = settings
        self.costs = None if workload is None else CostModel(plan, workload)
        self.workers = Workers()
        self.waiting: dict[str, Prompt] = {}
        self.is_exhausted = False
        self.awaits_lease = False
        self.live: dict[str, LivePrompt] = {}
        self.unplaced: dict[str, None] = {}
        self.chunked: dict[str, None] = {}
        self._run_seed = run_seed
        self._selections = selections
        self._actions: list[Action] = []
        self._next_batch_id = 0

    def take_actions(self) -> list[Action]:
        """Return the actions since the last call, in order."""
        actions, self._actions = self._actions, []
        return actions

    # What events say.

    def enqueue(self, prompt: Prompt) -> bool:
        """Let a prompt wait; return False, and do nothing, where it waits or is live already."""
        if prompt.key in self.waiting or prompt.key in self.live:
            return False
        self.waiting[prompt.key] = prompt
        return True

    def ask(self, action: Action) -> None:
        """Add an action that concerns neither a live prompt nor a worker."""
        self._actions.append(action)

    def drop(self, prompt_key: str) -> None:
        """Forget a prompt, and let the workers forget it."""
        self.waiting.pop(prompt_key, None)
        live = self.live.get(prompt_key)
        if live is not None:
            self._end_chunked(live)
            self._end_attempt(live)
            self.unplaced.pop(prompt_key, None)
            del self.live[prompt_key]

    def lose(self, worker: Worker) -> None:
        """Take a worker out, with all that it ran and held."""
        self.workers.advance(worker, WorkerState.LOST)
        worker_id = worker.worker_id
        for live in self.live.values():
            if live.chunked_on == worker_id:
                self._end_chunked(live)
            live.forget_worker(worker_id)
            if live.unassigned and live.chunked_on is None:
                self.unplaced[live.key] = None

    def drain(self, worker: Worker, state: WorkerState = WorkerState.DRAINING) -> None:
        """Give a worker nothing new, and take back what waits there."""
        self.workers.advance(worker, state)
        for live in self.live.values():
            if self._take_back(live, worker) or live.chunked_on == worker.worker_id:
                self.displace(live)

    def answered(self, live: LivePrompt, slots: Sequence[int]) -> None:
        """Note that slots run no longer."""
        for slot in slots:
            del live.in_flight[slot]

    def finish_batch(self, worker: Worker, batch_id: int) -> Batch | None:
        """Note that a worker has answered a batch; return it, or None where it is not known."""
        batch = worker.batches.pop(batch_id, None)
        if batch is not None:
            worker.runs_alone = False
        return batch

    def begin_segment(self, live: LivePrompt) -> None:
        """After a selection: what is held becomes the parents, and nothing of the new segment is assigned."""
        assert not live.in_flight
        live.parent_holders, live.assigned = live.assigned, {}
        live.rebuilt.clear()
        live.failures = live.suspicions = 0
        for worker_id, reserved in list(live.reserved.items()):
            memory = self.workers[worker_id].memory
            if not memory.children_replace_parents:
                parents = memory.needed(live.segment.index, slots=0, parents=len(live.parents_on(worker_id)))
                live.grandparents[worker_id] = reserved - parents
            self._account(live, worker_id)

    def begin_round(self, live: LivePrompt) -> None:
        """After a round: nothing that is held is of use, whoever waits may have its places."""
        assert not live.in_flight
        live.restarts += 1
        live.failures = live.suspicions = 0
        self._begin_anew(live)

    def evict_unused(self, live: LivePrompt) -> None:
        """Evict a prompt wherever nothing of it is assigned any more."""
        for worker_id in [worker_id for worker_id in live.touched if not live.assigned_to(worker_id)]:
            self._evict(live, worker_id)

    def displace(self, live: LivePrompt) -> None:
        """Note that a live prompt has slots that must run and are assigned to no worker."""
        self._end_chunked(live)
        self.unplaced[live.key] = None

    def end_chunked(self, live: LivePrompt) -> None:
        """Note that nothing of a prompt's segment is left to run or to assign."""
        self.unplaced.pop(live.key, None)
        self._end_chunked(live)

    # What policies decide.

    def apply(self, decision: Decision) -> None:
        """Carry a decision out."""
        logger.debug("%s", decision)
        match decision:
            case Send():
                self._send(decision)
            case Assign():
                self.unplaced.pop(decision.prompt_key, None)
                live = self.live[decision.prompt_key]
                begins = live.restarts > 0 and live.segment.index == 0 and not live.reserved
                self._assign(live, decision.assignment)
                if begins:
                    self._commit(live)
            case Start():
                self._start(decision)
            case Evict():
                self._evict(self.live[decision.prompt_key], decision.worker_id)
            case Preempt():
                self._preempt(self.live[decision.prompt_key])
            case RunChunked():
                live, worker = self.live[decision.prompt_key], self.workers[decision.worker_id]
                assert worker.dedicated_to is None
                worker.dedicated_to, live.chunked_on = live.key, worker.worker_id
                self.chunked[live.key] = None
                self.unplaced.pop(live.key, None)
            case Requeue():
                live, worker = self.live[decision.prompt_key], self.workers[decision.worker_id]
                self._wait(live, worker, decision.slots)
                if not worker.state.takes_work and self._take_back(live, worker):
                    self.displace(live)
            case Blame():
                live = self.live[decision.prompt_key]
                live.errors.append(decision.reason)
                live.failures += decision.is_proven
                live.repeats += decision.killed_worker
                live.suspicions += decision.killed_worker
            case Restart():
                live = self.live[decision.prompt_key]
                live.avoid.add(decision.away_from)
                self._begin_anew(live)
                if decision.is_speculative:
                    live.record_move({}, decision.reason)
            case GiveUp():
                live = self.live[decision.prompt_key]
                failure = PromptFailure(
                    prompt=live.population.prompt, attempts=live.attempts, errors=tuple(live.errors)
                )
                self.drop(live.key)
                self._actions.append(Emit(outcome=failure))
            case Shrink():
                self._shrink(self.workers[decision.worker_id], decision)
            case Steal():
                live = self.live[decision.prompt_key]
                self._take_back(live, self.workers[decision.victim])
                self._assign(live, decision.assignment)
                self.evict_unused(live)
                live.record_move(decision.assignment.worker_of, decision.assignment.reason)
            case Abandon():
                worker = self.workers[decision.worker_id]
                self._actions.append(decision)
                self.drain(worker, WorkerState.ABANDONED)
            case LeasePrompts():
                self.awaits_lease = True
                self._actions.append(decision)
            case _:
                assert_never(decision)

    def _start(self, decision: Start) -> None:
        live = LivePrompt(
            population=Population(
                prompt=self.waiting.pop(decision.prompt_key),
                plan=self.plan,
                run_seed=self._run_seed,
                selections=self._selections,
                trace_bits=self.settings.trace_bits,
            )
        )
        self.live[live.key] = live
        if decision.assignment is None:
            self.displace(live)
            return
        self._assign(live, decision.assignment)
        self._commit(live)

    def _commit(self, live: LivePrompt) -> None:
        """Keep memory for what the trajectories of a round that begins will grow to."""
        for worker_id in dict.fromkeys(live.assigned.values()):
            worker = self.workers[worker_id]
            slots = len(live.assigned_to(worker_id))
            live.commitments[worker_id] = worker.peak * slots // self.plan.segments[0].population
            worker.committed += live.commitments[worker_id]

    def _assign(self, live: LivePrompt, assignment: Assignment) -> None:
        by_worker: dict[str, list[int]] = {}
        for slot, worker_id in assignment.worker_of.items():
            by_worker.setdefault(worker_id, []).append(slot)
        for worker_id, slots in by_worker.items():
            live.assigned.update(dict.fromkeys(slots, worker_id))
            self._wait(live, self.workers[worker_id], slots)
            self._account(live, worker_id)

    def _wait(self, live: LivePrompt, worker: Worker, slots: Sequence[int]) -> None:
        """Let slots that are assigned to a worker wait for its next batch."""
        worker.backlog.push(live.key, live.segment.index, slots, alone=live.runs_alone)

    def _send(self, decision: Send) -> None:
        worker = self.workers[decision.worker_id]
        worker.backlog.take(decision.segment_index, decision.slots)
        batch_id = self._next_batch_id
        self._next_batch_id += 1
        tasks = tuple(
            self._task(self.live[prompt_key], worker, slots, batch_id)
            for prompt_key, slots in decision.slots.items()
        )
        num_rows = sum(len(slots) for slots in decision.slots.values())
        worker.batches[batch_id] = Batch(
            batch_id=batch_id,
            segment_index=decision.segment_index,
            tasks=tasks,
            num_rows=num_rows,
            memory=num_rows * worker.memory.running[decision.segment_index],
        )
        worker.runs_alone = decision.runs_alone
        self._actions.append(RunBatch(worker_id=worker.worker_id, batch_id=batch_id, tasks=tasks))

    def _task(self, live: LivePrompt, worker: Worker, slots: Sequence[int], batch_id: int) -> ShardTask:
        """Return the task that runs slots on a worker, and note that it is sent."""
        held = live.parents_on(worker.worker_id)
        task = live.population.task(slots, attempt=live.attempt, held_parents=held)
        live.in_flight.update(dict.fromkeys(task.slots, batch_id))
        live.touched[worker.worker_id] = None
        if task.parent_bits:
            live.rebuilt.setdefault(worker.worker_id, set()).update(task.parent_bits)
        if live.grandparents.pop(worker.worker_id, 0):
            self._account(live, worker.worker_id)
        return task

    def _preempt(self, live: LivePrompt) -> None:
        for worker_id in dict.fromkeys([*live.assigned.values(), *live.touched]):
            self._take_back(live, self.workers[worker_id])
            if not live.runs_on(worker_id):
                self._evict(live, worker_id)

    def _shrink(self, worker: Worker, decision: Shrink) -> None:
        worker.limits[decision.segment_index] = decision.rows
        worker.capacity = decision.capacity
        for live in self.live.values():
            if not live.runs_on(worker.worker_id):
                self._evict(live, worker.worker_id)

    # What these are made of.

    def _evict(self, live: LivePrompt, worker_id: str) -> None:
        """Let a worker forget a prompt: from here on bits are all there is of what was held there."""
        unreported = set(live.unreported)
        self._unassign(live, [slot for slot in live.assigned_to(worker_id) if slot not in unreported])
        live.grandparents.pop(worker_id, None)
        live.rebuilt.pop(worker_id, None)
        live.forget_parents(worker_id)
        self._account(live, worker_id)
        if worker_id in live.touched:
            if not live.runs_on(worker_id):
                del live.touched[worker_id]
            self._actions.append(Release(worker_id=worker_id, prompt_key=live.key, attempt=live.attempt))

    def _begin_anew(self, live: LivePrompt) -> None:
        self._end_attempt(live)
        live.attempt += 1
        self.displace(live)

    def _end_attempt(self, live: LivePrompt) -> None:
        """Nothing of a prompt waits or is held any more, and what is in flight runs to no purpose."""
        live.in_flight.clear()
        for worker_id in dict.fromkeys(live.assigned.values()):
            self.workers[worker_id].backlog.discard(live.key)
        self._unassign(live, list(live.assigned))
        for worker_id in list(live.touched):
            self._evict(live, worker_id)
        assert not live.parent_holders
        assert not live.reserved

    def _end_chunked(self, live: LivePrompt) -> None:
        """Give the worker that was kept for a prompt back to all, if there is one."""
        if live.chunked_on is None:
            return
        worker = self.workers.get(live.chunked_on)
        if worker is not None:
            worker.dedicated_to = None
        live.chunked_on = None
        del self.chunked[live.key]

    def _take_back(self, live: LivePrompt, worker: Worker) -> bool:
        """Unassign the slots that wait on a worker; return whether there were any."""
        slots = worker.backlog.discard(live.key)
        self._unassign(live, slots)
        return bool(slots)

    def _unassign(self, live: LivePrompt, slots: Sequence[int]) -> None:
        assert live.in_flight.keys().isdisjoint(slots)
        left = [live.assigned.pop(slot) for slot in slots]
        for worker_id in dict.fromkeys(left):
            self._account(live, worker_id)

    def _account(self, live: LivePrompt, worker_id: str) -> None:
        """Bring what is reserved for a prompt on a worker up to date."""
        worker = self.workers[worker_id]
        needed = live.needed(worker)
        worker.reserved += needed - live.reserved.pop(worker_id, 0)
        if needed:
            live.reserved[worker_id] = needed
        else:
            worker.committed -= live.commitments.pop(worker_id, 0)
