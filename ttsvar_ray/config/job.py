"""A job's settings as one value, and what of them decides what is generated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer

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
from ttsvar_ray.config.values import FailureBudget, Integer, Section, WeightFiles


class JobConfig(Section):
    """One job, resolved. `digest` names what it would generate."""

    model: ModelConfig = ModelConfig()
    prompts: PromptsConfig = PromptsConfig()
    strategy: StrategyConfig = StrategyConfig()
    sampling: SamplingConfig = SamplingConfig()
    reward: RewardConfig = RewardConfig()
    features: FeaturesConfig = FeaturesConfig()
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()
    verifiers: VerifiersConfig = VerifiersConfig()
    output: OutputConfig = OutputConfig()
    simulation: SimulationConfig = SimulationConfig()
    # A column of the output holds it: 64 bits.
    seed: Annotated[Integer, Field(ge=-(2**63), lt=2**63)] = 0
    max_failed: Annotated[
        FailureBudget, BeforeValidator(FailureBudget.read), PlainSerializer(FailureBudget.__str__)
    ] = Field(
        default=FailureBudget.read("1%"),
        description="prompts without an image, and bad lines, up to which a run that is done ends with exit "
        "code 0: a share of all lines, or a count; above it with 3",
    )

    def weight_files(self) -> Iterator[tuple[str, str, WeightFiles]]:
        """Yield section, key and mark of every setting that says where weights are."""
        for name, section in self:
            if isinstance(section, BaseModel):
                for key, field in type(section).model_fields.items():
                    for mark in field.metadata:
                        if isinstance(mark, WeightFiles):
                            yield name, key, mark

    def resolved(self) -> dict[str, Any]:
        """Return every setting of a run as JSON values, under the names a job file uses."""
        return self.model_dump(mode="json", by_alias=True, exclude={"simulation"})

    def content(self) -> dict[str, Any]:
        """Return the settings that change what is generated, flat: `{"strategy.n": 2, ...}`.

        Left out is what may differ between two sessions of one run: placement, speed, where files
        are. The prompts are left out too: their own digest says whether they changed.
        """
        # A GPU's kernels are chosen by shape, and that is what such a run holds fixed.
        counts = ("engine.micro_batch_rows",) if self.engine.deterministic else ()
        return _content_of(flatten(self.resolved()), counts=counts)

    def digest(self) -> str:
        """Return the sha256 of `content`, hexadecimal."""
        return content_digest(self.content())


def content_digest(content: Mapping[str, Any]) -> str:
    """Return the sha256 of what changes what is generated, hexadecimal."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


NOT_CONTENT = (
    "model.device",
    # What the files hold counts, not where they are: a run records their fingerprints.
    "model.path",
    "model.text_encoder",
    "reward.path",
    "features.backbone",
    "prompts",
    # What they chose is content: the thresholds.
    "strategy.calibration",
    "strategy.budget",
    "engine.micro_batch_rows",
    "engine.cuda_graphs",
    "engine.threads",
    "engine.memory_gb",
    "cluster",
    "verifiers",
    "output.path",
    # A table beside the images, whose bytes stay.
    "output.trace",
    "max_failed",
)
"""Settings (or whole sections) that do not change what is generated; but see `_content_of`."""


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def _content_of(settings: Mapping[str, Any], *, counts: Sequence[str] = ()) -> dict[str, Any]:
    """Return those of flat settings that change what is generated.

    Args:
        counts: settings of `NOT_CONTENT` that do change it in this job.
    """
    return {
        key: None if _within(key, "reward.members") else value
        for key, value in settings.items()
        if key in counts or not any(_within(key, off) for off in NOT_CONTENT)
    }


def _within(key: str, area: str) -> bool:
    return key == area or key.startswith(f"{area}.")
