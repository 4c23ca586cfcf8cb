"""How many trajectories a forward pass has, segment by segment."""

from __future__ import annotations

import itertools

from ttsvar_ray.config.sections import JobConfig
from ttsvar_ray.coordination.workload import rows_by_segment
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.search.plan import Plan

SETTING = "engine.micro_batch_rows"


def pass_rows(config: JobConfig, plan: Plan) -> tuple[int, ...] | None:
    """Return the rows that every forward pass of a segment has; None where they are as many as come."""
    return rows_by_segment(config.engine.micro_batch_rows, plan) if config.engine.deterministic else None


def check_rows(config: JobConfig, plan: Plan) -> None:
    """Find what is wrong with a job's micro-batches.

    Raises:
        ConfigurationError: not one number per segment; or numbers that rise in a deterministic job, where a
            pass that rebuilds the parents of a segment has the rows of the segments before.
    """
    rows = config.engine.micro_batch_rows
    if isinstance(rows, int):
        return
    scales = ", ".join(f"{segment.first_scale}-{segment.last_scale}" for segment in plan.segments)
    if len(rows) != len(plan.segments):
        raise ConfigurationError(
            f"{SETTING}: expected one number, or one for each of the plan's {len(plan.segments)} segments "
            f"(scales {scales}), got {len(rows)}"
        )
    if config.engine.deterministic and any(later > earlier for earlier, later in itertools.pairwise(rows)):
        raise ConfigurationError(
            f"{SETTING}: expected numbers that never rise with engine.deterministic, got {list(rows)}: what "
            "a segment goes on from may have to be rebuilt in the passes of the segments before; lower the "
            "later ones"
        )
