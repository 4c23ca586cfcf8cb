"""Which weights a job computes with: pinned before it starts, and recorded for its later sittings."""

from __future__ import annotations

from pathlib import Path

from ttsvar_ray.config.sections import JobConfig
from ttsvar_ray.job.build import (
    describe,
    model_choice,
    needs_features,
    resolve_extractor,
    resolve_rewards,
)
from ttsvar_ray.models.hub import HubRepository, is_hub_reference
from ttsvar_ray.models.registry import fetch_model, pin_model
from ttsvar_ray.models.weight_source import fingerprint_path
from ttsvar_ray.search.plan import Plan


def pin_weights(config: JobConfig) -> JobConfig:
    """Return the settings with each repository of the hub at the commit it stands for now.

    For building engines: workers that start at other times, on other machines, then load the same weights.

    Raises:
        CheckpointError: a repository whose commit cannot be found out.
    """
    pinned = pin_model(model_choice(config))
    names = {"name": pinned.name, "path": pinned.path, "text_encoder": pinned.text_encoder}
    return config.model_copy(update={"model": config.model.model_copy(update=names)})


def fetch_weights(config: JobConfig) -> None:
    """Bring the model's weights to this machine where they are in a repository of the hub.

    Workers fetch for themselves too, where they do not share a cache with this machine. Doing it here first
    shows progress to who started the job, once, and finds what is missing before workers wait for it.

    Raises:
        CheckpointError: the hub cannot be reached, or a file is missing.
    """
    fetch_model(model_choice(config))


def weight_fingerprints(config: JobConfig, plan: Plan) -> dict[str, str]:
    """Return what tells a job's weights from others, by a name for each: `{"weights.transformer": ...}`.

    Files are sampled, not read whole; see `WeightSource.fingerprint`.

    Raises:
        CheckpointError: weights that are not there.
    """
    description = describe(config)
    found = {f"weights.{part}": weights.fingerprint() for part, weights in description.weights.items()}

    def add(name: str, path: Path | None) -> None:
        if path is None:
            return
        own = path in (description.reward_path, description.backbone_path)
        if own and is_hub_reference(config.model.name):
            # In the same commit as the model, and perhaps not fetched yet.
            found[name] = str(HubRepository.parse(config.model.name).pinned())
        else:
            found[name] = fingerprint_path(path)

    for reward in resolve_rewards(config, description):
        add(f"weights.reward.{reward.name}", reward.path)
    if needs_features(plan):
        extractor = resolve_extractor(config, description)
        add(f"weights.features.{extractor.name}", extractor.path)
    return found
