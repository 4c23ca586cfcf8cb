"""The policies of a coordinator, as a job's configuration states them."""

from __future__ import annotations

from ttsvar_ray.config.sections import JobConfig
from ttsvar_ray.coordination.settings import CoordinatorSettings


def coordinator_settings(config: JobConfig) -> CoordinatorSettings:
    """Return what every cell of a job, and its simulation, goes by."""
    cluster = config.cluster
    return CoordinatorSettings(
        spread=cluster.spread,
        max_attempts=cluster.max_attempts,
        keep=config.output.keep,
        batch_tokens=cluster.batch_tokens,
        deadline_ceiling_seconds=cluster.segment_timeout_s,
        deadline_floor_seconds=min(CoordinatorSettings().deadline_floor_seconds, cluster.segment_timeout_s),
    )
