"""What travels between a coordinator and its workers. Values only: no ray, no torch.

    coordinator --RunSegment(tasks)--> worker --SegmentReport per task--> coordinator

A worker holds, for each (prompt_key, attempt), the trajectories of the last two segments it ran, by
slot, until it is told to release them: the shards of a segment may arrive in several batches, and all
of them need their parents. A task names the slots to run and, for each, its parent's slot in the
population before. A parent the worker does not hold is replayed from `parent_bits`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from ttsvar_ray.results import FinalImage, PackedBits
from ttsvar_ray.types import Float32Array, Prompt


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
    """

    prompt: Prompt
    attempt: int
    segment_index: int
    slots: tuple[int, ...]
    parent_slots: tuple[int, ...] = ()
    parent_bits: Mapping[int, PackedBits] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentReport:
    """What one shard found in one segment.

    Attributes:
        slots: as in the task.
        features: float32 [slots, feature_dim] where the segment ends in a clustering ([slots, num_patches,
            width] where the plan reduces them over the population), else None.
        rewards: float32 [slots, scored scales of this segment x reward members]: for each scored scale,
            the members' scores side by side. An ensemble is combined where its whole population is known.
        bits: one `PackedBits` per slot, for this segment's scales only.
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
