"""How a coordinator spreads, batches, retries and keeps: nothing here changes what an image looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ttsvar_ray.errors import ConfigurationError

Spread: TypeAlias = int | Literal["auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSettings:
    """Policies of a coordinator.

    Attributes:
        spread: workers that one prompt is sharded over; "auto" is one while there are at least as many
            prompts as workers or more can be leased, and shares the workers among the prompts when
            fewer remain.
        batches_in_flight: micro-batches that a worker holds at a time; with two it never waits for a
            decision.
        max_attempts: failures of one segment of a prompt before the prompt is given up.
        live_rows: most trajectories that one worker runs or holds at a time, over all prompts; None
            is two micro-batches more than `batches_in_flight` of them. Never below one population,
            so that every worker can finish a prompt on its own.
        keep: "best" emits the image with the highest reward, "all" emits every survivor, ranked.
        trace_bits: whether the record of each selection has the bits of its whole population.
        batch_tokens: most tokens of a micro-batch, so that none takes long; one trajectory always runs.
            None is no limit.
        deadline_factor: a batch is overdue after this many times the seconds expected of it.
        deadline_floor_seconds: but never before this, so that a hiccup is no death.
        deadline_ceiling_seconds: and always after this; alone it holds for a segment that no answer is
            known of, because a first answer waits for compilation and warm-up.
    """

    spread: Spread = "auto"
    batches_in_flight: int = 2
    max_attempts: int = 3
    live_rows: int | None = None
    keep: Literal["best", "all"] = "best"
    trace_bits: bool = False
    batch_tokens: int | None = None
    deadline_factor: float = 5.0
    deadline_floor_seconds: float = 30.0
    deadline_ceiling_seconds: float = 1800.0

    def __post_init__(self) -> None:
        problems = []
        if self.spread != "auto" and (not isinstance(self.spread, int) or self.spread < 1):
            problems.append(f'spread: expected "auto" or at least 1 worker, got {self.spread!r}')
        if self.batches_in_flight < 1:
            problems.append(f"batches_in_flight: expected at least 1, got {self.batches_in_flight}")
        if self.max_attempts < 1:
            problems.append(f"max_attempts: expected at least 1, got {self.max_attempts}")
        if self.live_rows is not None and self.live_rows < 1:
            problems.append(f"live_rows: expected at least 1 trajectory or None, got {self.live_rows}")
        if self.keep not in ("best", "all"):
            problems.append(f'keep: expected "best" or "all", got {self.keep!r}')
        if self.batch_tokens is not None and self.batch_tokens < 1:
            problems.append(f"batch_tokens: expected at least 1 token or None, got {self.batch_tokens}")
        if not self.deadline_factor >= 1:
            problems.append(f"deadline_factor: expected at least 1, got {self.deadline_factor}")
        floor, ceiling = self.deadline_floor_seconds, self.deadline_ceiling_seconds
        if not 0 <= floor <= ceiling:
            problems.append(
                f"deadline_floor_seconds: expected 0 to deadline_ceiling_seconds ({ceiling:g}), got {floor:g}"
            )
        if ceiling <= 0:
            problems.append(f"deadline_ceiling_seconds: expected more than 0, got {ceiling:g}")
        if problems:
            raise ConfigurationError(problems)
