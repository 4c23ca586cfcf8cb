"""What happens to a coordinator. Values only; whoever drives it makes them, in any order.

Results of workers that are gone, of batches that were given up and of attempts that are over are
legal events: they are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ttsvar_ray.coordination.messages import SegmentReport, ShardFailure
from ttsvar_ray.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined:
    """A worker is ready and holds no state.

    Attributes:
        worker_id: unique among the workers that are alive; a restarted worker may come back under
            its old name after `WorkerLost`.
        rows: most trajectories of one micro-batch, at least 1; one number, or one per segment.
        memory_bytes: what it can give to trajectories, running or held, at least 1; None where nothing
            is known, then rows alone limit it. Used only by a coordinator that has a `Workload`.
    """

    worker_id: str
    rows: int | tuple[int, ...]
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """A worker is gone with all that it held and all that it was running."""

    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDraining:
    """A worker will go soon: it finishes what it runs and is given nothing new."""

    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsLeased:
    """The answer to one `LeasePrompts`: at most as many prompts as asked for.

    Attributes:
        prompts: in the order in which they should be started; may be empty.
        is_last: none is left now, so no more will be asked for. Where more turn up after all (those of a
            lost cell), they are handed over unasked, and the last word counts.
    """

    prompts: tuple[Prompt, ...]
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDone:
    """A worker answered one `RunBatch`: one result for each of its tasks, in any order."""

    worker_id: str
    batch_id: int
    results: tuple[SegmentReport | ShardFailure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsWithdrawn:
    """Some prompts were finished elsewhere: drop them without an `Emit`.

    Keys that are not leased, or were emitted already, are ignored. A withdrawn prompt may be leased again.
    """

    prompt_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time goes on; the only event that knows it. About one a second; without any, nothing is overdue.

    Attributes:
        now: seconds of a monotonic clock of any origin, never less than in the tick before.
    """

    now: float


Event: TypeAlias = (
    WorkerJoined | WorkerLost | WorkerDraining | PromptsLeased | PromptsWithdrawn | BatchDone | Tick
)
