"""The coordinator: a pure state machine. Events in, actions out; no ray, no torch, no clock, no thread.

Invariants, at every event, in any order of events:

* Every leased prompt is emitted exactly once: as a `PromptResult`, or as a `PromptFailure` after
  `max_attempts` failures of one segment. One that is withdrawn is not emitted any more.
* No action names a worker that is gone, and no batch goes to one that drains or was abandoned.
* A selection waits for the whole population and depends on nothing else: not on the workers, the
  batches, or the order in which shards reported.
* What a worker runs and holds, and what is reserved there for waiting trajectories, never exceeds what it
  has: `memory_bytes` where bytes are known, else its live limit in trajectories. A batch respects the limits
  of rows and of tokens.
* A live prompt either has a worker for every slot that must still run, or holds nothing that does not
  run right now, or has a worker for itself. So full workers cannot wait for each other: what holds memory
  also makes progress.
* A slot is taken in once: results of lost batches, past attempts and repeated answers are dropped.

Recovery needs no log: the bits of the last selection rebuild any trajectory anywhere
(`ShardTask.parent_bits`), so losing a worker, running out of memory and moving a survivor are one operation.

    waiting --scheduling--> live: assigned --scheduling--> batch in flight --report--> population
                              ^                              | lost, failed              | complete
                              |<--------- failures ----------'                           |
                              |---- assignment: kept in place, or replayed <-------------|--> Emit
                              '---- a further round: all its places are free at once <---'

Policies (`assignment`, `scheduling`, `failures`, `deadlines`) read a `View` and return decisions; `Residency`
carries them out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from typing_extensions import assert_never

from ttsvar_ray.coordination import assignment, failures, scheduling
from ttsvar_ray.coordination.deadlines import Deadlines
from ttsvar_ray.coordination.decisions import Assign, Decision, Evict, View
from ttsvar_ray.coordination.live_prompt import LivePrompt
from ttsvar_ray.coordination.messages import (
    Action,
    BatchDone,
    Emit,
    Event,
    PromptsLeased,
    PromptsWithdrawn,
    Refuse,
    SegmentReport,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from ttsvar_ray.coordination.population import Restarted
from ttsvar_ray.coordination.residency import Residency
from ttsvar_ray.coordination.settings import CoordinatorSettings, Workload, rows_by_segment
from ttsvar_ray.coordination.workers import Worker, worker_of
from ttsvar_ray.errors import TtsVarError
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.rounds import Stop
from ttsvar_ray.search.selection import Select


class Coordinator:
    """Decides what runs where for a group of workers. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        *,
        plan: Plan,
        run_seed: int,
        settings: CoordinatorSettings,
        workload: Workload | None = None,
        selections: Select | None = None,
    ) -> None:
        """Start without workers and without prompts.

        Args:
            run_seed: names the random streams of the selections.
            workload: what each segment of the plan costs; without it rows alone limit a worker, and
                expectations are learnt from answers.
            selections: makes them in place of the search; for simulations, which need no real ones.
        """
        if workload is not None and len(workload.segments) != len(plan.segments):
            raise ValueError(
                f"workload: expected a load for each of the plan's {len(plan.segments)} segments, got "
                f"{len(workload.segments)}; build it for this plan"
            )
        self._plan = plan
        self._settings = settings
        self._workload = workload
        self._residency = Residency(
            plan=plan, run_seed=run_seed, settings=settings, workload=workload, selections=selections
        )
        self._deadlines = Deadlines(settings, workload)

    @property
    def view(self) -> View:
        """What it remembers of prompts and workers, to be read."""
        return self._residency

    @property
    def is_done(self) -> bool:
        """Whether every prompt has been emitted and none will follow."""
        view = self.view
        return view.is_exhausted and not view.waiting and not view.live

    def handle(self, event: Event) -> list[Action]:
        """Take in one event and return what to do about it, in order.

        Raises:
            ValueError: the event breaks the protocol (a prompt leased twice, an empty lease that is
                not the last, a worker without rows).
        """
        match event:
            case BatchDone():
                self._on_batch_done(event)
            case Tick():
                self._apply(self._deadlines.tick(event.now, self.view.workers))
            case PromptsLeased():
                self._on_prompts_leased(event)
            case WorkerJoined():
                self._on_worker_joined(event)
            case WorkerLost():
                self._on_worker_lost(event.worker_id, event.reason)
            case WorkerDraining():
                worker = self._residency.workers.get(event.worker_id)
                if worker is not None and worker.state.takes_work:
                    self._residency.drain(worker)
            case PromptsWithdrawn():
                keys = frozenset(event.prompt_keys)
                for key in [*(key for key in self.view.live if key in keys), *keys]:
                    self._residency.drop(key)
            case _:
                assert_never(event)
        self._go_on()
        if self._apply(assignment.rebalance(self.view, self._deadlines)):
            self._go_on()
        self._apply(scheduling.lease(self.view))
        return self._residency.take_actions()

    def _go_on(self) -> None:
        self._apply(assignment.place(self.view))
        self._apply(scheduling.dispatch(self.view))

    def _apply(self, decisions: Iterable[Decision]) -> bool:
        """Carry decisions out, each before the next is made; return whether there was one."""
        found = False
        for decision in decisions:
            self._residency.apply(decision)
            found = True
        return found

    # Events.

    def _on_prompts_leased(self, event: PromptsLeased) -> None:
        if not event.prompts and not event.is_last:
            raise ValueError(
                "PromptsLeased: expected prompts or is_last, got neither; wait for prompts instead"
            )
        for prompt in event.prompts:
            if not self._residency.enqueue(prompt):
                raise ValueError(f"PromptsLeased: prompt {prompt.key!r} is leased already; lease each once")
        self._residency.awaits_lease = False
        self._residency.is_exhausted = event.is_last

    def _on_worker_joined(self, event: WorkerJoined) -> None:
        if min(rows_by_segment(event.rows, self._plan)) < 1:
            raise ValueError(f"worker {event.worker_id}: expected rows of at least 1, got {event.rows}")
        self._on_worker_lost(event.worker_id, "joined again, so its former life is over")
        worker = worker_of(event, plan=self._plan, settings=self._settings, workload=self._workload)
        if isinstance(worker, Refuse):
            self._residency.ask(worker)
        else:
            self._residency.workers.add(worker)

    def _on_worker_lost(self, worker_id: str, reason: str) -> None:
        worker = self._residency.workers.get(worker_id)
        if worker is not None:
            self._residency.lose(worker)
            self._apply(failures.worker_lost(self.view, worker, reason))
        self._deadlines.forget(worker_id)

    def _on_batch_done(self, event: BatchDone) -> None:
        residency = self._residency
        worker = residency.workers.get(event.worker_id)
        batch = residency.finish_batch(worker, event.batch_id) if worker is not None else None
        if worker is None or batch is None:
            return
        seconds = [r.seconds for r in event.results if isinstance(r, SegmentReport)]
        if seconds:
            ratio = self._deadlines.answered(worker, batch, max(seconds))
            if ratio is not None:
                worker.learn_slowdown(ratio)
        answers = {(r.prompt_key, r.attempt, r.segment_index, r.slots): r for r in event.results}
        out_of_memory = False
        for task in batch.tasks:
            live = residency.live.get(task.prompt.key)
            # The batch id is unique, so this also recognises attempts that are over.
            if live is None or any(live.in_flight.get(slot) != batch.batch_id for slot in task.slots):
                continue
            residency.answered(live, task.slots)
            answer = answers.get((task.prompt.key, task.attempt, task.segment_index, task.slots))
            if isinstance(answer, SegmentReport):
                self._on_report(live, worker, answer)
            elif answer is None:
                error = "its batch was answered without a result for it"
                self._apply(failures.attempt_failed(self.view, live, worker, error))
            else:
                out_of_memory |= failures.is_out_of_memory(worker, batch, answer)
                self._apply(failures.shard_failed(self.view, live, worker, batch, task, answer))
        if out_of_memory:
            residency.apply(failures.shrink(worker, batch))

    # What a report leads to.

    def _on_report(self, live: LivePrompt, worker: Worker, report: SegmentReport) -> None:
        complaint = live.population.accept(report)
        if complaint is not None:
            self._apply(failures.attempt_failed(self.view, live, worker, complaint))
        elif live.population.is_complete:
            self._complete(live)
        elif not set(live.unreported).intersection(live.assigned_to(worker.worker_id)) and (
            live.segment.is_last or live.key in self.view.unplaced
        ):
            reason = "what is held here will not be, or must not be, continued here"
            self._residency.apply(Evict(prompt_key=live.key, worker_id=worker.worker_id, reason=reason))

    def _complete(self, live: LivePrompt) -> None:
        residency, population = self._residency, live.population
        residency.end_chunked(live)
        try:
            step = population.advance()
            if isinstance(step, Stop):
                result = population.result(step.reason, keep=self._settings.keep, attempts=live.attempts)
                residency.drop(live.key)
                residency.ask(Emit(outcome=result))
                return
        except TtsVarError as error:
            # The same population would fail again: no further attempt.
            self._apply(failures.not_comparable(live, error))
            return
        if isinstance(step, Restarted):
            residency.begin_round(live)
            return
        record = step
        residency.begin_segment(live)
        found = assignment.find(self.view, live)
        if found is None:
            residency.displace(live)
            record = replace(record, moved=len(record.ancestor_index), reason="replayed when there is room")
        else:
            placement = tuple(found.worker_of.values())
            record = replace(record, placement=placement, moved=found.moved, reason=found.reason)
            residency.apply(Assign(prompt_key=live.key, assignment=found))
        population.trace.append(record)
        residency.evict_unused(live)
