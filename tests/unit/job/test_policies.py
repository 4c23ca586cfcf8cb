"""What a job's configuration says to its coordinators."""

from __future__ import annotations

from ttsvar_ray.config.sections import JobConfig
from ttsvar_ray.job.policies import coordinator_settings


def test_every_policy_of_a_job_reaches_the_coordinator() -> None:
    config = JobConfig.model_validate(
        {
            "cluster": {
                "spread": 3,
                "max_attempts": 5,
                "batch_tokens": 9000,
                "segment_timeout_s": 12.0,
            },
            "output": {"keep": "all", "path": "out"},
            "prompts": {"path": "prompts.txt"},
        }
    )
    settings = coordinator_settings(config)
    assert (settings.spread, settings.max_attempts, settings.keep) == (3, 5, "all")
    assert settings.batch_tokens == 9000
    assert (settings.deadline_floor_seconds, settings.deadline_ceiling_seconds) == (12.0, 12.0)
