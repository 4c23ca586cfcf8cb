"""What a run gives back: finished prompts, failed ones, and the trace of each search. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ttsvar_ray.types import Prompt

PackedBits = tuple[bytes, ...]
"""Bits of one trajectory: one `np.packbits(bits, axis=None).tobytes()` per finished scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalImage:
    """One finished image. `payload` is opaque here: encoded bytes, or a reference to them."""

    payload: Any
    width: int
    height: int
    image_format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultImage:
    """One kept image of a finished prompt, ready to become a row.

    Attributes:
        rank: 0 = best reward.
        reward_history: the rewards of this trajectory's lineage at `Plan.scored_scales`; NaN where
            none was taken. An ensemble's are combined over the population of their scale.
        lineage: this image's ancestor slot in the population of each segment, ending with its own.
        bits: all scales.
        member_rewards: what each member of the reward gave the final image, in the reward's own order.
    """

    rank: int
    image: FinalImage
    reward: float
    reward_history: tuple[float, ...]
    lineage: tuple[int, ...]
    bits: PackedBits
    member_rewards: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRecord:
    """What one selection saw and decided: a row of the trace table.

    Attributes:
        kind: name of the operator.
        ancestor_index: slots in the population before, one per survivor.
        rewards: [population] of its scale, where the operator reads rewards; else empty.
        numbers: what the operator wrote down, by name: one number, or one per trajectory.
        placement: worker of each survivor; `moved` counts survivors replayed on another worker,
            `reason` says why.
    """

    prompt_key: str
    scale_index: int
    kind: str
    ancestor_index: tuple[int, ...]
    rewards: tuple[float, ...] = ()
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    placement: tuple[str, ...] = ()
    moved: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """A prompt that is done: its kept images by rank, and the trace of its search."""

    prompt: Prompt
    images: tuple[ResultImage, ...]
    trace: tuple[SelectionRecord, ...]
    attempts: int
    seconds: float
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFailure:
    """A prompt that is given up: becomes one dead-letter row."""

    prompt: Prompt
    attempts: int
    errors: tuple[str, ...]
