"""Job settings: YAML at the edge, frozen values inside."""

from __future__ import annotations

from ttsvar_ray.config.columns import ColumnChoice
from ttsvar_ray.config.content import content_digest, flatten
from ttsvar_ray.config.failure_budget import FailureBudget
from ttsvar_ray.config.load import load_config, option_names, read_job_file, recorded_config
from ttsvar_ray.config.sections import (
    ClusterConfig,
    EngineConfig,
    FeaturesConfig,
    JobConfig,
    ModelConfig,
    OutputConfig,
    PromptsConfig,
    RewardConfig,
    SamplingConfig,
    SimulationConfig,
    StrategyConfig,
)
from ttsvar_ray.config.shard import Shard

__all__ = [
    "ClusterConfig",
    "ColumnChoice",
    "EngineConfig",
    "FailureBudget",
    "FeaturesConfig",
    "JobConfig",
    "ModelConfig",
    "OutputConfig",
    "PromptsConfig",
    "RewardConfig",
    "SamplingConfig",
    "Shard",
    "SimulationConfig",
    "StrategyConfig",
    "content_digest",
    "flatten",
    "load_config",
    "option_names",
    "read_job_file",
    "recorded_config",
]
