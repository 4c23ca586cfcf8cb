"""What a run gives back: finished prompts, failed ones, traces of searches, how far it is. Values only."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ttsvar_ray.types import Prompt

PackedBits = tuple[bytes, ...]
"""Bits of one trajectory: one `np.packbits(bits, axis=None).tobytes()` per finished scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalImage:
    """One finished image.

    Attributes:
        payload: encoded bytes, or a reference to them, which is opaque here; None where another image of its
            prompt was known to be the one that is kept.
        crc32: of the bytes as they were encoded: on their way to the file they pass through the memories of
            several machines.
    """

    payload: Any
    width: int
    height: int
    image_format: str
    crc32: int

    @classmethod
    def of_bytes(cls, content: bytes, *, width: int, height: int, image_format: str) -> FinalImage:
        """Return the image of bytes that have just been encoded."""
        crc32 = zlib.crc32(content)
        return cls(payload=content, width=width, height=height, image_format=image_format, crc32=crc32)

    @classmethod
    def unwritten(cls, *, width: int, height: int, image_format: str) -> FinalImage:
        """Return an image that was not encoded, because it will not be kept."""
        return cls(payload=None, width=width, height=height, image_format=image_format, crc32=0)

    def is_intact(self, content: bytes) -> bool:
        """Whether bytes are those that were encoded."""
        return zlib.crc32(content) == self.crc32


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultImage:
    """One kept image of a finished prompt, ready to become a row.

    Attributes:
        rank: 0 = best reward.
        reward_history: the rewards of this trajectory's lineage at `Plan.scored_scales`; NaN where
            none was taken. An ensemble's are combined over the population of their scale.
        lineage: this image's ancestor slot in the population of each segment, ending with its own.
        member_rewards: what each member of the reward gave the final image, in the reward's own order.
        round_index: of the population that it comes from.
    """

    rank: int
    image: FinalImage
    reward: float
    reward_history: tuple[float, ...]
    lineage: tuple[int, ...]
    bits: PackedBits
    member_rewards: tuple[float, ...] = ()
    round_index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRecord:
    """What one selection saw and decided: a row of the trace table.

    Attributes:
        kind: name of the operator.
        ancestor_index: slots in the population before, one per survivor; none where the round was abandoned.
        rewards: [population] of its scale, where the operator reads rewards; else empty.
        numbers: what the operator wrote down, by name: one number, or one per trajectory.
        placement: worker of each survivor; `moved` counts survivors replayed on another worker,
            `reason` says why, or why the round was abandoned.
        round_index: of an adaptive search.
        bits: of every trajectory of the population, all scales up to this one; empty where they are not kept.
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
    round_index: int = 0
    bits: tuple[PackedBits, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """A prompt that is done: its kept images by rank, and the trace of its search.

    Attributes:
        rounds: how many were begun.
        stopped: why no further one followed (`search.rounds.StopReason`).
        trajectories: that ran each segment of the plan, over all rounds; what was done again counts once.
    """

    prompt: Prompt
    images: tuple[ResultImage, ...]
    trace: tuple[SelectionRecord, ...]
    attempts: int
    seconds: float
    counters: Mapping[str, int] = field(default_factory=dict)
    rounds: int = 1
    stopped: str = ""
    trajectories: tuple[int, ...] = ()

    def cost_images(self, image_costs: tuple[float, ...]) -> float | None:
        """Return what it cost, in images drawn without any search; None of no `plan_cost.image_costs`."""
        each = zip(self.trajectories, image_costs[1:], strict=True)
        return image_costs[0] + sum(count * cost for count, cost in each) if image_costs else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFailure:
    """A prompt that is given up: becomes one dead-letter row."""

    prompt: Prompt
    attempts: int
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """Where a running job stands.

    Attributes:
        prompts_total: prompts of the whole set.
        prompts_resumed: of those, done before this session.
        prompts_done: finished or given up in this session (their part may not be committed yet).
        failed: given up in this session.
        images: kept images of this session.
        mean_reward: of the best images of this session; NaN before the first.
        workers, workers_wanted: that are up, and that were asked for.
        seconds: since the first worker was up; 0 before.
    """

    prompts_total: int
    prompts_resumed: int
    prompts_done: int
    failed: int
    images: int
    mean_reward: float
    workers: int
    workers_wanted: int
    seconds: float

    @property
    def is_over(self) -> bool:
        """Whether no prompt is left."""
        return self.prompts_resumed + self.prompts_done == self.prompts_total

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the speed so far; None before the first prompt, and after the last."""
        left = self.prompts_total - self.prompts_resumed - self.prompts_done
        return left * self.seconds / self.prompts_done if left and self.prompts_done else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """What the committed prompts of a run have cost.

    Attributes:
        prompts: with images.
        flops: by stage: of texts, the transformer, decodes, and selectors (rewards and features); all 0 where
            they are not counted.
        image_flops: of one image without any search; 0 where they are not counted.
        trajectories: that ran each segment for them, by its scales, such as "0-6".
        decoded, scored, embedded: images, over the searches of these prompts.
        kept: images of the data set.
        device_seconds: of the workers of all sessions, whatever they did.
        sessions: that computed.
        uncounted_parts: that do not say what ran; their prompts are in nothing here but `kept`.
        uncounted_code: which code of the user's own ran, whose FLOPs nobody counts, for people; or "".
    """

    strategy: str
    prompts: int
    flops: Mapping[str, float]
    image_flops: float
    trajectories: Mapping[str, int]
    decoded: int
    scored: int
    embedded: int
    kept: int
    device_seconds: float
    sessions: int
    uncounted_parts: int = 0
    uncounted_code: str = ""

    @property
    def total_flops(self) -> float:
        """Of all stages."""
        return math.fsum(self.flops.values())

    @property
    def images_per_prompt(self) -> float:
        """What a prompt cost on average, in images drawn without any search; NaN where that is not known."""
        if not self.prompts or not self.image_flops:
            return math.nan
        return self.total_flops / self.image_flops / self.prompts

    def to_json(self) -> dict[str, Any]:
        """Return it for machines; what is not known is None."""
        per_prompt = self.images_per_prompt
        return {
            "strategy": self.strategy,
            "prompts": self.prompts,
            "flops": {**self.flops, "all": self.total_flops} if self.image_flops else None,
            "images_per_prompt": None if math.isnan(per_prompt) else per_prompt,
            "trajectories": dict(self.trajectories),
            "decoded": self.decoded,
            "scored": self.scored,
            "embedded": self.embedded,
            "kept": self.kept,
            "device_seconds": round(self.device_seconds, 3),
            "sessions": self.sessions,
            "uncounted_parts": self.uncounted_parts,
            "uncounted_code": self.uncounted_code,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """How a job ended.

    Attributes:
        output: the folder, a path or a URI without credentials.
        uri: of the same folder, to open it by. May hold secrets: never show it.
        prompts: prompts with images, over all sessions.
        images: rows, over all sessions.
        failed: prompts that were given up, over all sessions.
        bad_lines: lines of the prompt file that hold no prompt.
        mean_reward: over the best image of each prompt; NaN without any.
        cut: prompts that are longer than what the model reads of them, over all sessions.
        prompts_resumed: of `prompts`, those that had their images before this session.
        workers: most workers that were up at a time.
        seconds: wall time of this session.
        generating_seconds: of those, from its first worker to its last outcome; 0 if it made none.
        first_image_seconds: of those, up to its first image; NaN if it made none.
        images_per_second: of this session, in those; NaN if it made none.
        notices: what went wrong and was survived, one line each.
        cost: over all sessions; None where nobody said what the plan is.
    """

    output: str
    uri: str = field(repr=False)
    prompts: int
    images: int
    failed: int
    bad_lines: int
    mean_reward: float
    cut: int
    prompts_resumed: int
    workers: int
    seconds: float
    images_per_second: float
    generating_seconds: float = 0.0
    first_image_seconds: float = math.nan
    notices: tuple[str, ...] = ()
    cost: RunCost | None = None
