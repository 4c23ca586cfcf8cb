"""The coordinator: a pure state machine. Events in, actions out; no ray, no torch, no clock, no thread.

Invariants, at every event, in any order of events:

* Every leased prompt is emitted exactly once: as a `PromptResult`, or as a `PromptFailure` after
  `max_attempts` failures of one segment. One that is withdrawn is not emitted any more.
* No action names a worker that is gone, and no batch goes to one that drains or was abandoned.
* A selection waits for the whole population and depends on nothing else: not on the workers, the
  batches, or the order in which shards reported.
* What a worker runs and holds, and what was promised to waiting trajectories, never exceeds what it has:
  `memory_bytes` where bytes are known, else its live limit in trajectories. A batch respects the limits of
  rows and of tokens.
* A live prompt either has a place for every slot that must still run, or holds nothing that does not
  run right now, or has a worker for itself. So full workers cannot wait for each other: what holds room also
  makes progress.
* A slot is taken in once: results of lost batches, past attempts and repeated answers are dropped.

Recovery needs no log: the bits of the last selection rebuild any trajectory anywhere
(`ShardTask.parent_bits`), so losing a worker, running out of room and moving a survivor are one operation.

    waiting --admission--> live: seats --dispatch--> batch in flight --report--> population
                             ^                            | lost, failed           | complete
                             |<--------- recovery --------'                        |
                             '---- seating: kept in place, or replayed <-----------'--> Emit

When nothing is left to start, `relief` moves what waits behind others, or crawls on a slow worker, to idle
workers.
"""

from __future__ import annotations

from dataclasses import replace

from typing_extensions import assert_never

from ttsvar_ray.coordination.admission import Admission
from ttsvar_ray.coordination.custody import Custody
from ttsvar_ray.coordination.deadlines import Deadlines
from ttsvar_ray.coordination.dispatch import Dispatcher
from ttsvar_ray.coordination.fleet import Fleet, Worker
from ttsvar_ray.coordination.joining import take_measure
from ttsvar_ray.coordination.live_prompt import LivePrompt
from ttsvar_ray.coordination.messages import (
    Action,
    BatchDone,
    Emit,
    Event,
    FailureKind,
    PromptsLeased,
    PromptsWithdrawn,
    Refuse,
    SegmentReport,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from ttsvar_ray.coordination.recovery import Recovery
from ttsvar_ray.coordination.relief import Relief
from ttsvar_ray.coordination.seating import Seater
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.coordination.state import State
from ttsvar_ray.coordination.workload import Workload, rows_by_segment
from ttsvar_ray.errors import TtsVarError
from ttsvar_ray.search.plan import Plan
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
            plan: what every prompt runs.
            run_seed: names the random streams of the selections.
            settings: policies.
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
        fleet = Fleet()
        self._state = State(
            plan=plan,
            run_seed=run_seed,
            settings=settings,
            workload=workload,
            selections=selections,
            fleet=fleet,
            custody=Custody(fleet),
        )
        self._seater = Seater(self._state)
        self._admission = Admission(self._state, self._seater)
        self._dispatcher = Dispatcher(self._state, self._admission)
        self._recovery = Recovery(self._state)
        self._deadlines = Deadlines(settings, workload)
        self._relief = Relief(self._state, self._deadlines)

    @property
    def is_done(self) -> bool:
        """Whether every prompt has been emitted and none will follow."""
        return self._state.is_exhausted and not self._state.waiting and not self._state.live

    @property
    def num_live(self) -> int:
        """Prompts that were started and not emitted."""
        return len(self._state.live)

    @property
    def num_waiting(self) -> int:
        """Prompts that were leased and not started."""
        return len(self._state.waiting)

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
                self._on_tick(event)
            case PromptsLeased():
                self._on_prompts_leased(event)
            case WorkerJoined():
                self._on_worker_joined(event)
            case WorkerLost():
                self._on_worker_lost(event.worker_id, event.reason)
            case WorkerDraining():
                worker = self._state.fleet.get(event.worker_id)
                if worker is not None:
                    self._recovery.drain(worker)
            case PromptsWithdrawn():
                self._on_prompts_withdrawn(event)
            case _:
                assert_never(event)
        self._seater.place_unplaced()
        self._dispatcher.dispatch()
        if self._relief.relieve():
            self._seater.place_unplaced()
            self._dispatcher.dispatch()
        self._admission.lease()
        actions, self._state.actions = self._state.actions, []
        return actions

    # Events.

    def _on_prompts_leased(self, event: PromptsLeased) -> None:
        if not event.prompts and not event.is_last:
            raise ValueError(
                "PromptsLeased: expected prompts or is_last, got neither; wait for prompts instead"
            )
        for prompt in event.prompts:
            if not self._state.enqueue(prompt):
                raise ValueError(f"PromptsLeased: prompt {prompt.key!r} is leased already; lease each once")
        self._admission.answered()
        self._state.is_exhausted = event.is_last

    def _on_prompts_withdrawn(self, event: PromptsWithdrawn) -> None:
        keys = frozenset(event.prompt_keys)
        for key in [key for key in self._state.live if key in keys]:
            self._state.close(self._state.live[key])
        for key in keys:
            self._state.waiting.pop(key, None)

    def _on_worker_joined(self, event: WorkerJoined) -> None:
        if min(rows_by_segment(event.rows, self._plan)) < 1:
            raise ValueError(f"worker {event.worker_id}: expected rows of at least 1, got {event.rows}")
        if event.worker_id in self._state.fleet:
            self._on_worker_lost(event.worker_id, "joined again, so its former life is over")
        worker = take_measure(event, plan=self._plan, settings=self._settings, workload=self._workload)
        if isinstance(worker, Refuse):
            self._state.actions.append(worker)
            return
        self._state.fleet.add(worker)

    def _on_worker_lost(self, worker_id: str, reason: str) -> None:
        self._recovery.lose(worker_id, reason)
        self._deadlines.forget(worker_id)

    def _on_tick(self, event: Tick) -> None:
        for abandon in self._deadlines.tick(event.now, self._state.fleet):
            worker = self._state.fleet.get(abandon.worker_id)
            assert worker is not None
            if not worker.is_abandoned:
                worker.is_abandoned = True
                self._state.actions.append(abandon)
                self._recovery.drain(worker)

    def _on_batch_done(self, event: BatchDone) -> None:
        worker = self._state.fleet.get(event.worker_id)
        batch = worker.batches.pop(event.batch_id, None) if worker is not None else None
        if worker is None or batch is None:
            return
        worker.runs_alone = False
        answers = {(r.prompt_key, r.attempt, r.segment_index, r.slots): r for r in event.results}
        seconds = [r.seconds for r in event.results if isinstance(r, SegmentReport)]
        if seconds:
            ratio = self._deadlines.answered(worker, batch, max(seconds))
            if ratio is not None:
                worker.learn_pace(ratio)
        out_of_memory = False
        for task in batch.tasks:
            live = self._state.live.get(task.prompt.key)
            # The batch id is unique, so this also recognises attempts that are over.
            if live is None or any(live.in_flight.get(slot) != batch.batch_id for slot in task.slots):
                continue
            for slot in task.slots:
                del live.in_flight[slot]
            answer = answers.get((task.prompt.key, task.attempt, task.segment_index, task.slots))
            if isinstance(answer, SegmentReport):
                self._on_report(live, worker, answer)
            elif answer is None:
                self._recovery.retry_elsewhere(live, worker, "its batch was answered without a result for it")
            elif answer.kind is FailureKind.MEMORY and self._recovery.can_ask_less(worker, batch):
                out_of_memory = True
                self._recovery.requeue(live, worker, task.slots)
            else:
                self._recovery.on_failure(live, worker, task, answer)
        if out_of_memory:
            self._recovery.shrink(worker, batch)

    # What a report leads to.

    def _on_report(self, live: LivePrompt, worker: Worker, report: SegmentReport) -> None:
        complaint = live.population.accept(report)
        if complaint is not None:
            self._recovery.retry_elsewhere(live, worker, complaint)
            return
        if live.population.is_complete:
            self._complete(live)
        elif self._is_of_no_more_use(live, worker):
            self._state.actions += self._state.custody.release(live, worker.worker_id)

    def _is_of_no_more_use(self, live: LivePrompt, worker: Worker) -> bool:
        """Return whether what a worker holds of a prompt will not be, or must not be, continued there."""
        unreported = set(live.population.unreported)
        if unreported.intersection(live.seated_on(worker.worker_id)):
            return False
        return live.population.segment.is_last or live.key in self._state.unplaced

    def _complete(self, live: LivePrompt) -> None:
        state = self._state
        state.unplaced.pop(live.key, None)
        state.end_piecemeal(live)
        population = live.population
        try:
            if population.segment.is_last:
                result = population.result(keep=self._settings.keep, attempts=live.attempts)
                state.close(live)
                state.actions.append(Emit(outcome=result))
                return
            record = population.advance()
        except TtsVarError as error:
            # The same population would fail again: no further attempt.
            live.errors.append(f"{type(error).__name__}: {error}")
            state.give_up(live)
            return
        state.custody.begin_segment(live)
        seating = self._seater.find(live)
        if seating is None:
            state.unplaced[live.key] = None
            record = replace(record, moved=len(record.ancestor_index), reason="replayed when there is room")
        else:
            placement = tuple(seating.worker_of.values())
            record = replace(record, placement=placement, moved=seating.moved, reason=seating.reason)
            state.custody.sit_down(live, seating)
        population.trace.append(record)
        state.actions += state.custody.release_unused(live)
