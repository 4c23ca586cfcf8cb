"""The coordinator: a pure state machine. Events in, actions out; no ray, no torch, no clock, no thread.

Invariants, at every event, in any order of events:

* Every leased prompt is emitted exactly once: as a `PromptResult`, or as a `PromptFailure` after
  `max_attempts` failures of one segment.
* No action names a worker that is gone, and no batch goes to one that drains.
* A selection waits for the whole population and depends on nothing else: not on the workers, the
  batches, or the order in which shards reported.
* A batch has at most the worker's `rows` trajectories, and what a worker runs or holds for live prompts
  was within its live limit when it was placed there.
* A live prompt either has a place for every slot that must still run, or holds nothing that does not
  run right now. So full workers cannot wait for each other: what holds room also makes progress.
* A slot is taken in once: results of lost batches, past attempts and repeated answers are dropped.

Recovery needs no log: the bits of the last selection rebuild any trajectory anywhere
(`ShardTask.parent_bits`), so losing a worker, running out of room and moving a survivor are one operation.

    waiting --admit--> live: seats --backlog of a worker--> batch in flight --report--> population
                        ^                                                             | complete
                        '---- survivors: kept in place, or moved and replayed <-------'--> Emit
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from ttsvar_ray.coordination.actions import Action, Emit, LeasePrompts, RunBatch
from ttsvar_ray.coordination.custody import Custody
from ttsvar_ray.coordination.events import (
    BatchDone,
    Event,
    PromptsLeased,
    PromptsWithdrawn,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from ttsvar_ray.coordination.fleet import Batch, Fleet, Worker
from ttsvar_ray.coordination.live_prompt import LivePrompt
from ttsvar_ray.coordination.messages import (
    FailureKind,
    PromptFailure,
    SegmentReport,
    ShardTask,
)
from ttsvar_ray.coordination.placement import (
    Candidate,
    Seating,
    effective_spread,
    feasible_spread,
    seat,
)
from ttsvar_ray.coordination.population import Population
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.coordination.workload import Workload
from ttsvar_ray.errors import TtsVarError
from ttsvar_ray.search.schedule import Plan
from ttsvar_ray.search.selection import Select
from ttsvar_ray.types import Prompt


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
        self._plan = plan
        self._run_seed = run_seed
        self._settings = settings
        self._workload = workload
        self._selections = selections
        self._largest_population = max(segment.population for segment in plan.segments)
        self._fleet = Fleet()
        self._custody = Custody(self._fleet)
        self._waiting: deque[Prompt] = deque()
        self._live: dict[str, LivePrompt] = {}
        self._unplaced: dict[str, None] = {}
        self._names: set[str] = set()
        self._awaits_lease = False
        self._exhausted = False
        self._next_batch_id = 0
        self._now: float | None = None
        self._actions: list[Action] = []

    @property
    def is_done(self) -> bool:
        """Whether every prompt has been emitted and none will follow."""
        return self._exhausted and not self._waiting and not self._live

    @property
    def num_live(self) -> int:
        """Prompts that were started and not emitted."""
        return len(self._live)

    @property
    def num_waiting(self) -> int:
        """Prompts that were leased and not started."""
        return len(self._waiting)

    def handle(self, event: Event) -> list[Action]:
        """Take in one event and return what to do about it, in order.

        Raises:
            ValueError: the event breaks the protocol (a prompt leased twice, an empty lease that is
                not the last, a worker without rows).
        """
        if isinstance(event, BatchDone):
            self._on_batch_done(event)
        elif isinstance(event, PromptsLeased):
            self._on_prompts_leased(event)
        elif isinstance(event, WorkerJoined):
            self._on_worker_joined(event)
        elif isinstance(event, WorkerLost):
            self._lose(event.worker_id, event.reason)
        elif isinstance(event, PromptsWithdrawn):
            self._on_prompts_withdrawn(event)
        elif isinstance(event, Tick):
            self._now = event.now
        else:
            self._on_worker_draining(event)
        self._place_unplaced()
        self._dispatch()
        self._lease()
        actions, self._actions = self._actions, []
        return actions

    # Events.

    def _on_prompts_leased(self, event: PromptsLeased) -> None:
        if not event.prompts and not event.is_last:
            raise ValueError(
                "PromptsLeased: expected prompts or is_last, got neither; wait for prompts instead"
            )
        for prompt in event.prompts:
            if prompt.key in self._names:
                raise ValueError(f"PromptsLeased: prompt {prompt.key!r} is leased already; lease each once")
            self._names.add(prompt.key)
            self._waiting.append(prompt)
        self._awaits_lease = False
        self._exhausted = self._exhausted or event.is_last

    def _on_prompts_withdrawn(self, event: PromptsWithdrawn) -> None:
        gone = set(event.prompt_keys) & self._names
        for key in [key for key in self._live if key in gone]:
            self._close(self._live[key])
        if gone & self._names:
            self._waiting = deque(prompt for prompt in self._waiting if prompt.key not in gone)
            self._names -= gone

    def _on_worker_joined(self, event: WorkerJoined) -> None:
        if event.rows < 1:
            raise ValueError(f"worker {event.worker_id}: expected rows of at least 1, got {event.rows}")
        if event.worker_id in self._fleet:
            self._lose(event.worker_id, "joined again, so its former life is over")
        limit = self._settings.live_rows or (self._settings.batches_in_flight + 2) * event.rows
        self._fleet.add(
            Worker(
                worker_id=event.worker_id,
                rows=event.rows,
                live_limit=max(limit, self._largest_population),
            )
        )

    def _on_worker_draining(self, event: WorkerDraining) -> None:
        worker = self._fleet.get(event.worker_id)
        if worker is None:
            return
        worker.is_draining = True
        for live in self._live.values():
            if self._custody.take_off_backlog(live, worker):
                self._unplaced[live.key] = None

    def _lose(self, worker_id: str, reason: str) -> None:
        worker = self._fleet.remove(worker_id)
        if worker is None:
            return
        for live in self._live.values():
            self._custody.lose(live, worker_id)
            if live.unseated:
                self._unplaced[live.key] = None
        running = sorted({key for batch in worker.batches.values() for key in batch.prompt_keys})
        for key in running:
            if key in self._live:
                live = self._live[key]
                error = f"worker {worker_id} was lost in segment {live.population.segment.index}: {reason}"
                live.errors.append(error)
                live.repeats += 1
                live.suspicions += 1
                # Only a prompt that had the worker to itself is certain to have had a part in its end.
                if running == [key]:
                    live.failures += 1
                    if live.failures >= self._settings.max_attempts:
                        self._give_up(live)

    def _on_batch_done(self, event: BatchDone) -> None:
        worker = self._fleet.get(event.worker_id)
        batch = worker.batches.pop(event.batch_id, None) if worker is not None else None
        if worker is None or batch is None:
            return
        worker.runs_alone = False
        answers = {(r.prompt_key, r.attempt, r.segment_index, r.slots): r for r in event.results}
        out_of_memory = False
        for task in batch.tasks:
            live = self._live.get(task.prompt.key)
            # The batch id is unique, so this also recognises attempts that are over.
            if live is None or any(live.in_flight.get(slot) != batch.batch_id for slot in task.slots):
                continue
            for slot in task.slots:
                del live.in_flight[slot]
            answer = answers.get((task.prompt.key, task.attempt, task.segment_index, task.slots))
            if isinstance(answer, SegmentReport):
                self._on_report(live, worker, answer)
            elif answer is None:
                self._retry_elsewhere(live, worker, "its batch was answered without a result for it")
            elif answer.kind is FailureKind.MEMORY and batch.num_rows > 1:
                out_of_memory = True
                self._requeue(live, worker, task.slots)
            elif answer.kind is FailureKind.STALE and _relied_on_state(task):
                self._custody.forget_parents(live, worker.worker_id)
                self._requeue(live, worker, task.slots)
            else:
                self._retry_elsewhere(live, worker, answer.error)
        if out_of_memory:
            self._shrink(worker, batch)

    # What a result leads to.

    def _on_report(self, live: LivePrompt, worker: Worker, report: SegmentReport) -> None:
        complaint = live.population.accept(report)
        if complaint is not None:
            self._retry_elsewhere(live, worker, complaint)
            return
        if live.population.is_complete:
            self._complete(live)
        elif self._is_of_no_more_use(live, worker):
            self._actions += self._custody.release(live, worker.worker_id)

    def _is_of_no_more_use(self, live: LivePrompt, worker: Worker) -> bool:
        """Return whether what a worker holds of a prompt will not be, or must not be, continued there."""
        unreported = set(live.population.unreported)
        if unreported.intersection(live.seated_on(worker.worker_id)):
            return False
        return live.population.segment.is_last or live.key in self._unplaced

    def _complete(self, live: LivePrompt) -> None:
        self._unplaced.pop(live.key, None)
        population = live.population
        try:
            if population.segment.is_last:
                result = population.result(keep=self._settings.keep, attempts=live.attempts)
                self._close(live)
                self._actions.append(Emit(outcome=result))
                return
            record = population.advance()
        except TtsVarError as error:
            # The same population would fail again: no further attempt.
            live.errors.append(f"{type(error).__name__}: {error}")
            self._give_up(live)
            return
        self._custody.begin_segment(live)
        seating = self._find_seats(live)
        if seating is None:
            self._unplaced[live.key] = None
            record = replace(record, moved=len(record.ancestor_index), reason="replayed when there is room")
        else:
            placement = tuple(seating.worker_of.values())
            record = replace(record, placement=placement, moved=seating.moved, reason=seating.reason)
            self._custody.sit_down(live, seating)
        population.trace.append(record)
        self._actions += self._custody.release_unused(live)

    def _requeue(self, live: LivePrompt, worker: Worker, slots: Sequence[int]) -> None:
        """Let slots that were in flight on a worker wait there again."""
        self._custody.wait(live, worker, slots)
        if worker.is_draining and self._custody.take_off_backlog(live, worker):
            self._unplaced[live.key] = None

    def _retry_elsewhere(self, live: LivePrompt, worker: Worker, error: str) -> None:
        """Begin a new attempt at what is left of the segment; its old state is not trusted."""
        where = f"segment {live.population.segment.index}, worker {worker.worker_id}"
        live.errors.append(f"attempt {live.attempt}, {where}: {error}")
        live.failures += 1
        if live.failures >= self._settings.max_attempts:
            self._give_up(live)
            return
        live.avoid.add(worker.worker_id)
        self._actions += self._custody.withdraw(live)
        live.attempt += 1
        self._unplaced[live.key] = None

    def _shrink(self, worker: Worker, batch: Batch) -> None:
        """Ask less of a worker that ran out of memory: smaller batches, nothing held in reserve."""
        worker.rows = min(worker.rows, batch.num_rows // 2)
        worker.live_limit = max(worker.live_rows // 2, self._largest_population)
        for live in self._live.values():
            if not live.runs_on(worker.worker_id):
                self._actions += self._custody.release(live, worker.worker_id)

    def _give_up(self, live: LivePrompt) -> None:
        failure = PromptFailure(
            prompt=live.population.prompt, attempts=live.attempts, errors=tuple(live.errors)
        )
        self._close(live)
        self._actions.append(Emit(outcome=failure))

    def _close(self, live: LivePrompt) -> None:
        self._actions += self._custody.withdraw(live)
        self._unplaced.pop(live.key, None)
        self._names.discard(live.key)
        del self._live[live.key]

    def _find_seats(self, live: LivePrompt) -> Seating | None:
        """Decide where a prompt's unseated slots go, or that there is no room for all of them now."""
        slots = live.unseated
        homes = live.homes(slots)
        parent_slots = live.population.parent_slots
        usable = self._fleet.usable()
        if not usable:
            return None
        spread = self._spread(len(slots), len(usable))
        near = {*homes.values(), *live.seats.values()}
        order = sorted(usable, key=lambda w: (w.worker_id in live.avoid, w.worker_id not in near, w.load))
        # Widening is worth a replay only where a worker would otherwise do nothing.
        idle = [w for w in order if w.worker_id in near or w.is_idle]
        narrow = idle if self._settings.spread == "auto" and homes else order
        for workers in (narrow, order):
            seating = seat(
                slots,
                parent_of={slot: parent_slots[slot] for slot in slots} if parent_slots else {},
                home_of=homes,
                candidates=[
                    Candidate(worker_id=w.worker_id, room=self._custody.room_for(live, w)) for w in workers
                ],
                spread=spread,
            )
            if seating is not None:
                return seating
        return None

    def _spread(self, rows: int, num_workers: int) -> int:
        num_prompts = len(self._live) + len(self._waiting)
        if not self._exhausted:
            # Prompts that can still be leased keep the others busy as well as those at hand.
            num_prompts = max(num_prompts, num_workers)
        return effective_spread(
            self._settings.spread, num_prompts=num_prompts, num_workers=num_workers, rows=rows
        )

    # What runs next.

    def _place_unplaced(self) -> None:
        for key in list(self._unplaced):
            live = self._live[key]
            seating = self._find_seats(live) if live.unseated else None
            if seating is not None:
                self._custody.sit_down(live, seating)
                del self._unplaced[key]
            elif live.unseated:
                self._actions += self._custody.park(live)
            else:
                del self._unplaced[key]

    def _dispatch(self) -> None:
        # Breadth first: every worker has one batch before any has two.
        for depth in range(self._settings.batches_in_flight):
            for worker in self._fleet.usable():
                if len(worker.batches) == depth and not worker.runs_alone:
                    self._send_batch(worker)

    def _send_batch(self, worker: Worker) -> None:
        missing = worker.backlog.rows_missing(worker.rows, is_idle=not worker.batches)
        self._admit(worker, missing)
        alone = worker.backlog.wants_alone
        cuts = worker.backlog.take(worker.rows, is_idle=not worker.batches)
        if not cuts:
            return
        batch_id = self._next_batch_id
        self._next_batch_id += 1
        tasks = []
        for cut in cuts:
            live = self._live[cut.prompt_key]
            held = live.parents_on(worker.worker_id)
            tasks.append(live.population.task(cut.slots, attempt=live.attempt, held_parents=held))
            live.in_flight.update(dict.fromkeys(cut.slots, batch_id))
            live.touched[worker.worker_id] = None
        worker.batches[batch_id] = Batch(
            batch_id=batch_id, tasks=tuple(tasks), num_rows=sum(len(cut.slots) for cut in cuts)
        )
        worker.runs_alone = alone
        self._actions.append(RunBatch(worker_id=worker.worker_id, batch_id=batch_id, tasks=tuple(tasks)))

    def _admit(self, worker: Worker, rows: int) -> None:
        """Start waiting prompts until a worker's next batch has up to `rows` more trajectories."""
        if rows == 0 or not self._waiting or self._unplaced:
            return
        usable = self._fleet.usable()
        quota = len(self._waiting)
        if self._exhausted:
            # The last prompts are shared out evenly among the workers that have as little to do.
            peers = sum(len(w.batches) <= len(worker.batches) and not w.backlog for w in usable)
            quota = -(-quota // max(1, peers))
        population = self._plan.segments[0].population
        while rows > 0 and quota > 0:
            spread = self._spread(population, len(usable))
            others = sorted((w for w in usable if w is not worker), key=lambda w: w.load)
            candidates = [Candidate(worker_id=w.worker_id, room=w.room) for w in (worker, *others)]
            spread = feasible_spread(population, candidates, spread)
            share = -(-population // spread) if spread else 0
            if spread == 0 or (share > rows and worker.backlog):
                return
            prompt = self._waiting.popleft()
            population_of_prompt = Population(
                prompt=prompt, plan=self._plan, run_seed=self._run_seed, selections=self._selections
            )
            live = LivePrompt(population=population_of_prompt)
            self._live[live.key] = live
            roomy = [candidate for candidate in candidates if candidate.room >= share]
            seating = seat(live.unseated, parent_of={}, home_of={}, candidates=roomy, spread=spread)
            assert seating is not None, "the spread was chosen to fit"
            self._custody.sit_down(live, seating)
            rows -= share
            quota -= 1

    def _lease(self) -> None:
        """Keep one more round of prompts at hand than the workers run."""
        usable = self._fleet.usable()
        if self._exhausted or self._awaits_lease or not usable:
            return
        population = self._plan.segments[0].population
        rounds = self._settings.batches_in_flight
        wanted = sum(rounds * -(-worker.rows // population) for worker in usable)
        if 2 * len(self._waiting) <= wanted:
            self._awaits_lease = True
            self._actions.append(LeasePrompts(count=wanted - len(self._waiting)))


def _relied_on_state(task: ShardTask) -> bool:
    """Return whether a task asked for parents that the worker was believed to hold."""
    return any(parent not in task.parent_bits for parent in task.parent_slots)
