"""What a coordinator asks for. Values only; whoever drives it carries them out in this order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ttsvar_ray.coordination.messages import ShardTask
from ttsvar_ray.results import PromptFailure, PromptResult


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

    Given once in a worker's life. Until its loss is told, its answers still count.

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
