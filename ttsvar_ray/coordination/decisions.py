"""What policies see and what they return: read-only views, and decisions as values with a reason.

A policy is a function of a `View` that yields decisions. `Residency.apply` carries each one out before the
policy goes on, so that the next one is made with what the one before has changed. Nothing else writes
prompts and workers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ttsvar_ray.coordination.messages import Abandon, LeasePrompts
from ttsvar_ray.coordination.placement import Assignment, Candidate, CostModel
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.coordination.workers import WorkersView, WorkerView
from ttsvar_ray.search.plan import Plan, Segment
from ttsvar_ray.types import Prompt


class PromptView(Protocol):
    """A started prompt, as policies see it; attributes as `live_prompt.LivePrompt` has them."""

    @property
    def key(self) -> str: ...
    @property
    def segment(self) -> Segment: ...
    @property
    def unreported(self) -> tuple[int, ...]: ...
    @property
    def unassigned(self) -> list[int]: ...
    @property
    def attempt(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def assigned(self) -> Mapping[int, str]: ...
    @property
    def in_flight(self) -> Mapping[int, int]: ...
    @property
    def reserved(self) -> Mapping[str, int]: ...
    @property
    def avoid(self) -> AbstractSet[str]: ...
    @property
    def chunked_on(self) -> str | None: ...
    def assigned_to(self, worker_id: str) -> list[int]: ...
    def runs_on(self, worker_id: str) -> bool: ...
    def parents_on(self, worker_id: str) -> frozenset[int]: ...
    def candidate(self, worker: WorkerView) -> Candidate: ...
    def needed(self, worker: WorkerView) -> int: ...
    def parent_of(self, slots: Iterable[int]) -> dict[int, int]: ...
    def holder_of(self, slots: Iterable[int]) -> dict[int, str]: ...


class View(Protocol):
    """Everything that a coordinator remembers, as policies see it; attributes as `Residency` has them."""

    @property
    def plan(self) -> Plan: ...
    @property
    def settings(self) -> CoordinatorSettings: ...
    @property
    def costs(self) -> CostModel | None: ...
    @property
    def workers(self) -> WorkersView: ...
    @property
    def waiting(self) -> Mapping[str, Prompt]: ...
    @property
    def is_exhausted(self) -> bool: ...
    @property
    def awaits_lease(self) -> bool: ...
    @property
    def live(self) -> Mapping[str, PromptView]: ...
    @property
    def unplaced(self) -> Collection[str]: ...
    @property
    def chunked(self) -> Collection[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Begin a prompt that waits; without an assignment it has to be assigned next."""

    prompt_key: str
    assignment: Assignment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """Let slots of a live prompt wait on workers; whatever must run is assigned then, or runs in chunks."""

    prompt_key: str
    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempt:
    """Keep nothing of a prompt but what runs right now; its bits bring it back when there is memory."""

    prompt_key: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunChunked:
    """Give a prompt a worker for itself, where it runs as many slots at a time as fit."""

    prompt_key: str
    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evict:
    """Let a worker forget what it holds of a prompt; what waits there carries bits from then on."""

    prompt_key: str
    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeue:
    """Let slots that were in flight on a worker wait there again."""

    prompt_key: str
    worker_id: str
    slots: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """Note what went wrong with a prompt.

    Attributes:
        is_proven: whether it counts as a failure of the prompt.
        killed_worker: whether its worker died meanwhile, which makes it a suspect.
    """

    prompt_key: str
    reason: str
    is_proven: bool
    killed_worker: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """Begin what is left of a segment anew, away from one worker; what was held of it is not used again.

    Attributes:
        is_speculative: nothing failed: it is expected to be done sooner elsewhere.
    """

    prompt_key: str
    away_from: str
    reason: str
    is_speculative: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """Emit a prompt as failed, with all that went wrong."""

    prompt_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrink:
    """Ask less of a worker from now on: smaller batches of one segment, less memory, and less held now."""

    worker_id: str
    segment_index: int
    rows: int
    capacity: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Steal:
    """Let what waits on one worker wait on an idle one."""

    prompt_key: str
    victim: str
    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send the next batch of what waits on a worker.

    Attributes:
        slots: by prompt, all of one segment.
        runs_alone: whether nothing else may run there meanwhile.
    """

    worker_id: str
    segment_index: int
    slots: Mapping[str, tuple[int, ...]]
    runs_alone: bool


Decision: TypeAlias = (
    Start
    | Assign
    | Preempt
    | RunChunked
    | Evict
    | Requeue
    | Blame
    | Restart
    | GiveUp
    | Shrink
    | Steal
    | Send
    | Abandon
    | LeasePrompts
)
