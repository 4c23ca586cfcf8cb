"""What a coordinator asks for. Values only; whoever drives it carries them out in this order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ttsvar_ray.coordination.messages import PromptFailure, PromptResult, ShardTask


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


Action: TypeAlias = RunBatch | Release | Emit | LeasePrompts
