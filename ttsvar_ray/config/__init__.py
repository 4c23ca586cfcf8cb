"""Job settings: YAML at the edge, frozen values inside."""

from __future__ import annotations

from ttsvar_ray.config.explain import validated
from ttsvar_ray.config.job import JobConfig, content_digest, flatten
from ttsvar_ray.config.load import load_config, option_names, recorded_config
from ttsvar_ray.config.running import (
    ClusterConfig,
    EngineConfig,
    OutputConfig,
    SimulationConfig,
    VerifiersConfig,
)
from ttsvar_ray.config.sections import (
    FeaturesConfig,
    ModelConfig,
    PromptsConfig,
    RewardConfig,
    SamplingConfig,
    StrategyConfig,
)
from ttsvar_ray.config.values import ColumnChoice, FailureBudget, Shard
from ttsvar_ray.config.yaml_file import read_job_file

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
    "VerifiersConfig",
    "content_digest",
    "flatten",
    "load_config",
    "option_names",
    "read_job_file",
    "recorded_config",
    "validated",
]
