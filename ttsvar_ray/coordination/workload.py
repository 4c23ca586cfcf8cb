"""What the segments of a plan cost a worker: bytes and seconds, as a coordinator and its simulator use them.

Numbers only: they come from counted costs and a device's rates, or from a measured profile. A coordinator
decides with them where work fits, whether moving pays and how long an answer may take; they never change
what an image looks like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.search.plan import Plan


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
    """

    segments: tuple[SegmentLoad, ...]
    source: str

    def seconds(self, segment_index: int, rows: int, replayed: int = 0) -> float:
        """Return the predicted time of one micro-batch.

        Args:
            segment_index: which segment.
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
