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
    """

    spread: Spread = "auto"
    batches_in_flight: int = 2
    max_attempts: int = 3
    live_rows: int | None = None
    keep: Literal["best", "all"] = "best"

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
        if problems:
            raise ConfigurationError(problems)
