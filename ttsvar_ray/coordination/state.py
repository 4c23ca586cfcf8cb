"""What the rooms of a coordinator share: the prompts, the workers, and the actions of the present event."""

from __future__ import annotations

from dataclasses import dataclass, field

from ttsvar_ray.coordination.custody import Custody
from ttsvar_ray.coordination.fleet import Fleet, Worker
from ttsvar_ray.coordination.live_prompt import LivePrompt
from ttsvar_ray.coordination.messages import Action, Emit
from ttsvar_ray.coordination.population import Population
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.coordination.workload import Workload
from ttsvar_ray.results import PromptFailure
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.selection import Select
from ttsvar_ray.types import Prompt


@dataclass(slots=True, kw_only=True)
class State:
    """Everything that a coordinator remembers.

    Attributes:
        waiting: leased and not started, by key, in order.
        is_exhausted: whether no prompt is left to lease.
        live: started and not emitted, by key.
        unplaced: of these, those without a place for some slot that must run, the oldest first.
        piecemeal: of these, those that run piece by piece on a worker of their own.
        actions: what the present event leads to, in order.
    """

    plan: Plan
    run_seed: int
    settings: CoordinatorSettings
    workload: Workload | None
    selections: Select | None
    fleet: Fleet
    custody: Custody
    waiting: dict[str, Prompt] = field(default_factory=dict)
    is_exhausted: bool = False
    live: dict[str, LivePrompt] = field(default_factory=dict)
    unplaced: dict[str, None] = field(default_factory=dict)
    piecemeal: dict[str, None] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)

    def enqueue(self, prompt: Prompt) -> bool:
        """Let a prompt wait; return False, and do nothing, where it waits or lives already."""
        if prompt.key in self.waiting or prompt.key in self.live:
            return False
        self.waiting[prompt.key] = prompt
        return True

    def start_next(self) -> LivePrompt:
        """Turn the prompt that has waited longest into a live one without places."""
        prompt = self.waiting.pop(next(iter(self.waiting)))
        population = Population(
            prompt=prompt, plan=self.plan, run_seed=self.run_seed, selections=self.selections
        )
        live = LivePrompt(population=population)
        self.live[live.key] = live
        return live

    def close(self, live: LivePrompt) -> None:
        """Forget a live prompt, and let the workers forget it."""
        self.end_piecemeal(live)
        self.actions += self.custody.withdraw(live)
        self.unplaced.pop(live.key, None)
        del self.live[live.key]

    def give_up(self, live: LivePrompt) -> None:
        """Emit a prompt as failed."""
        failure = PromptFailure(
            prompt=live.population.prompt, attempts=live.attempts, errors=tuple(live.errors)
        )
        self.close(live)
        self.actions.append(Emit(outcome=failure))

    def displace(self, live: LivePrompt) -> None:
        """Note that a live prompt has slots that must run and have no place."""
        self.end_piecemeal(live)
        self.unplaced[live.key] = None

    def begin_piecemeal(self, live: LivePrompt, worker: Worker) -> None:
        """Keep a worker for one prompt."""
        assert worker.reserved_for is None
        worker.reserved_for = live.key
        live.piecemeal_on = worker.worker_id
        self.piecemeal[live.key] = None
        self.unplaced.pop(live.key, None)

    def end_piecemeal(self, live: LivePrompt) -> None:
        """Give the worker that was kept for a prompt back to all, if there is one."""
        if live.piecemeal_on is None:
            return
        worker = self.fleet.get(live.piecemeal_on)
        if worker is not None:
            worker.reserved_for = None
        live.piecemeal_on = None
        del self.piecemeal[live.key]
