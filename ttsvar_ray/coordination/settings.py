"""What a coordinator is told when it starts: its policies, and what each segment of the plan costs a worker.

Nothing here changes what an image looks like. Costs are numbers only, counted with a device's rates or
measured: with them a coordinator decides where work fits, whether moving pays and how long an answer may
take, and the simulator plays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.search.plan import Plan

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
        problems = [
            f"{name}: expected at least 1, got {getattr(self, name)!r}"
            for name in ("batches_in_flight", "max_attempts", "live_rows", "batch_tokens", "deadline_factor")
            if getattr(self, name) is not None and not getattr(self, name) >= 1
        ]
        if self.spread != "auto" and (not isinstance(self.spread, int) or self.spread < 1):
            problems.append(f'spread: expected "auto" or at least 1 worker, got {self.spread!r}')
        if self.keep not in ("best", "all"):
            problems.append(f'keep: expected "best" or "all", got {self.keep!r}')
        floor, ceiling = self.deadline_floor_seconds, self.deadline_ceiling_seconds
        if not (0 <= floor <= ceiling and ceiling > 0):
            problems.append(
                "deadline_floor_seconds: expected 0 to deadline_ceiling_seconds, more than 0, got "
                f"{floor:g} to {ceiling:g}"
            )
        if problems:
            raise ConfigurationError(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentLoad:
    """What one segment costs, for one trajectory where nothing else is said.

    Attributes:
        tokens: tokens of its scales (of one sequence).
        held_bytes: state that stays on the worker when the segment is done (KV cache, feature map),
            until the prompt has moved on; all scales so far, not this segment's alone.
        running_bytes: most that it takes while the segment runs, its own state included, its parent's not.
        batch_seconds: time of a micro-batch that does not depend on how many trajectories are in it.
        row_seconds: time per trajectory on top of that: scales, decodes, selectors, encoding.
        replay_seconds: time to rebuild one distinct parent's state from its bits; 0 in the first segment.
        pass_rows: rows that every forward pass has, filled up where there are fewer trajectories; 0: as many
            as there are. Where it is given, `replay_seconds` is of a pass that rebuilds up to so many.
    """

    tokens: int
    held_bytes: int = 0
    running_bytes: int = 0
    batch_seconds: float
    row_seconds: float
    replay_seconds: float = 0.0
    pass_rows: int = 0

    def __post_init__(self) -> None:
        negative = [name for name in self.__slots__ if getattr(self, name) < 0]
        if negative:
            raise ConfigurationError([f"workload: {name}: expected at least 0" for name in negative])


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The loads of all segments of a plan, in order.

    Attributes:
        segments: one load per segment of the plan.
        source: where the numbers come from, for people: "counted, rates of h200", "measured on ...".
        verifier_seconds: of a prompt's scores in all verifiers together: no number of workers makes it
            quicker; 0 where the workers score.
    """

    segments: tuple[SegmentLoad, ...]
    source: str
    verifier_seconds: float = 0.0

    def seconds(self, segment_index: int, rows: int, replayed: int = 0) -> float:
        """Return the predicted time of one micro-batch.

        Args:
            rows: trajectories in it, at least 1.
            replayed: distinct parents that are rebuilt from bits first.
        """
        load = self.segments[segment_index]
        passes = math.ceil(rows / load.pass_rows) if load.pass_rows else 1
        filled = passes * load.pass_rows or rows
        return (
            passes * load.batch_seconds
            + filled * load.row_seconds
            + self.replay_seconds(segment_index, rows, replayed)
        )

    def replay_seconds(self, segment_index: int, rows: int, replayed: int) -> float:
        """Return the part of `seconds` in which parents are rebuilt."""
        load = self.segments[segment_index]
        times = min(replayed, math.ceil(rows / load.pass_rows)) if load.pass_rows else replayed
        return times * load.replay_seconds


def rows_by_segment(rows: int | tuple[int, ...], plan: Plan) -> tuple[int, ...]:
    """Return the most trajectories of a micro-batch, one number per segment of the plan."""
    if isinstance(rows, int):
        return (rows,) * len(plan.segments)
    assert len(rows) == len(plan.segments), f"{len(rows)} numbers for {len(plan.segments)} segments"
    return rows
