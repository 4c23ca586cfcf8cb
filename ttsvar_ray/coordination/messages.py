"""What a coordinator, its workers and its driver tell each other. Values only: no ray, no torch.

    driver --Event--> coordinator --Action--> driver
                      RunBatch(tasks) --> worker --SegmentReport per task--> BatchDone

A worker holds, for each (prompt_key, attempt), the trajectories of the last two segments it ran, by
slot, until it is told to release them: the shards of a segment may arrive in several batches, and all
of them need their parents. A task names the slots to run and, for each, its parent's slot in the
population before. A parent the worker does not hold is replayed from `parent_bits`.

Events may come in any order. Results of workers that are gone, of batches that were given up and of attempts
that are over are legal: they are dropped. Actions are carried out in the order in which they are given.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ttsvar_ray.results import FinalImage, PackedBits, PromptFailure, PromptResult
from ttsvar_ray.types import Float32Array, Float64Array, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """Run one segment for some trajectories of one prompt on one worker.

    Attributes:
        segment_index: which segment of the plan.
        slots: slots to run, in the population of this segment, ascending.
        parent_slots: one per slot: its ancestor's slot in the population before the last selection
            (empty for segment 0).
        parent_bits: bits of those parents that this worker does not hold, by parent slot; each
            distinct parent is replayed once however often it was chosen.
        round_index: names the random streams, with prompt, scale and slot. Every round is an attempt of its
            own, so that no two of them share state.
    """

    prompt: Prompt
    attempt: int
    segment_index: int
    slots: tuple[int, ...]
    parent_slots: tuple[int, ...] = ()
    parent_bits: Mapping[int, PackedBits] = field(default_factory=dict)
    round_index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentReport:
    """What one shard found in one segment.

    Attributes:
        features: float32 [slots, feature_dim] where the segment ends in a clustering ([slots, num_patches,
            width] where the plan reduces them over the population), else None.
        rewards: float32 [slots, scored scales of this segment x reward members]: for each scored scale,
            the members' scores side by side. An ensemble is combined where its whole population is known.
        bits: one `PackedBits` per slot, for this segment's scales only.
        log_likelihood: float64 [slots], nats of those bits, where the plan reads it; else None.
        images: one per slot in the last segment, else empty.
        seconds: wall time of the micro-batch's compute that this shard took part in.
        counters: counted policies (for example rewards that were not finite), by name.
    """

    prompt_key: str
    attempt: int
    segment_index: int
    slots: tuple[int, ...]
    features: Float32Array | None
    rewards: Float32Array
    bits: tuple[PackedBits, ...]
    log_likelihood: Float64Array | None = None
    images: tuple[FinalImage, ...] = ()
    seconds: float = 0.0
    counters: Mapping[str, int] = field(default_factory=dict)


class FailureKind(str, enum.Enum):
    """What to do about a failed shard."""

    PROMPT = "prompt"
    """The prompt itself failed (its own fault or ours): try again, then dead-letter it."""
    STALE = "stale"
    """The worker does not hold the state: replay from bits."""
    MEMORY = "memory"
    """The device ran out of memory: smaller micro-batch, try again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFailure:
    """A shard that did not finish its segment; the worker itself is well."""

    prompt_key: str
    attempt: int
    segment_index: int
    slots: tuple[int, ...]
    kind: FailureKind
    error: str

    @classmethod
    def of(cls, task: ShardTask, kind: FailureKind, error: str) -> ShardFailure:
        """Return the failure of all slots of a task."""
        return cls(
            prompt_key=task.prompt.key,
            attempt=task.attempt,
            segment_index=task.segment_index,
            slots=task.slots,
            kind=kind,
            error=error,
        )


# Events: what happens to a coordinator.


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


# Actions: what a coordinator asks for.


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBatch:
    """Run one micro-batch; answered by one `BatchDone`, or by the loss of the worker.

    Actions for one worker are carried out in the order in which they were given.

    Attributes:
        batch_id: unique within a coordinator.
        tasks: shards of one segment, of different prompts or of one, at most `rows` trajectories.
    """

    worker_id: str
    batch_id: int
    tasks: tuple[ShardTask, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Forget all trajectories of one attempt at a prompt; releasing what is not held is no error."""

    worker_id: str
    prompt_key: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """A leased prompt is over: its images, or why there are none. Exactly one for each prompt."""

    outcome: PromptResult | PromptFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasePrompts:
    """Ask for up to `count` more prompts; answered by one `PromptsLeased`, which may be late."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """A worker is overdue: end it, start another; answered by `WorkerLost`, which may be late.

    Given once for a worker. Until its loss is told, its answers still count.

    Attributes:
        reason: which batch of which prompts, how long it has taken and how long it may.
    """

    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """A worker that just joined can never run the plan: it is not taken in, and another like it would not be.

    Attributes:
        reason: what does not fit, with the numbers.
    """

    worker_id: str
    reason: str


Action: TypeAlias = RunBatch | Release | Emit | LeasePrompts | Abandon | Refuse
