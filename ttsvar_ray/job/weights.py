"""Which weights a job computes with, pinned before it starts and recorded for its later sessions; and what
its relative paths mean, on the driver and on the workers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.values import Shard
from ttsvar_ray.job.resolved import ResolvedJob, model_choice
from ttsvar_ray.models.registry import BUILT_IN, describe_model, pin_model, published_names
from ttsvar_ray.models.weight_source import HubRepository, fingerprint_path, is_hub_reference
from ttsvar_ray.prompts.rewrite import own_rewriter
from ttsvar_ray.storage.uris import is_uri, split_query


def resolve_output(path: str, *, submitted: bool, shard: Shard | None = None) -> str:
    """Return the output folder as an absolute path, or the URI that it is.

    Args:
        submitted: whether this is the entry point of `ray job submit`. Its working directory is a copy that
            Ray deletes with the session, so that a relative path would lose the output: there it is taken
            from the home folder of the user that runs the cluster.
        shard: of a prompt set that several runs share: each writes to a folder of its own inside.
    """
    if is_uri(path):
        base_uri, query = split_query(path)
        return path if shard is None else f"{base_uri}/{shard.folder}{query}"
    given = Path(path).expanduser() / ("" if shard is None else shard.folder)
    base = Path.home() if submitted else Path.cwd()
    return str(given if given.is_absolute() else base / given)


def with_absolute_inputs(config: JobConfig) -> JobConfig:
    """Return the settings with absolute paths of weights: workers may have another working directory.

    For building engines only; the digest is taken of the settings as they were given.
    """

    def absolute(path: str | None) -> str | None:
        if path is None or is_hub_reference(path):
            return path
        return str(Path(path).expanduser().absolute())

    sections: dict[str, Any] = {}
    for name, key, mark in config.weight_files():
        section = sections.get(name, getattr(config, name))
        value = getattr(section, key)
        if mark.or_name and (value == BUILT_IN or value in published_names()):
            continue
        if isinstance(value, dict):
            value = {member: absolute(path) for member, path in value.items()}
        else:
            value = absolute(value)
        sections[name] = section.model_copy(update={key: value})
    return config.model_copy(update=sections)


def pin_weights(job: ResolvedJob) -> ResolvedJob:
    """Return the job with each repository of the hub at the commit it stands for now.

    For building engines: workers that start at other times, on other machines, then load the same weights.

    Raises:
        CheckpointError: a repository whose commit cannot be found out.
    """
    choice = model_choice(job.config)
    pinned = pin_model(choice)
    if pinned == choice:
        return job
    names = {"name": pinned.name, "path": pinned.path, "text_encoder": pinned.text_encoder}
    config = job.config.model_copy(update={"model": job.config.model.model_copy(update=names)})
    return dataclasses.replace(job, config=config, description=describe_model(pinned))


def fingerprints(job: ResolvedJob) -> dict[str, str]:
    """Return what tells a job's weights from others, by a name for each: `{"weights.transformer": ...}`.

    Code of the user's own is told apart by its source. Files are sampled, not read whole; see
    `WeightSource.fingerprint`.

    Raises:
        CheckpointError: weights that are not there.
    """
    description, model = job.description, job.config.model.name
    found = {f"weights.{part}": weights.fingerprint() for part, weights in description.weights.items()}

    def add(name: str, path: Path | None) -> None:
        if path is None:
            return
        own = path in (description.reward_path, description.backbone_path)
        if own and is_hub_reference(model):
            # In the same commit as the model, and perhaps not fetched yet.
            found[name] = str(HubRepository.parse(model).pinned())
        else:
            found[name] = fingerprint_path(path)

    if (own := own_rewriter(job.config.prompts.rewrite)) is not None:
        found[f"code.rewrite.{own.path}"] = own.source_digest
    for reward in job.rewards:
        if reward.source_digest is not None:
            found[f"code.reward.{reward.name}"] = reward.source_digest
        add(f"weights.reward.{reward.name}", reward.path)
    if job.map_reward is not None and job.map_reward.source_digest is not None:
        found[f"code.map_reward.{job.map_reward.name}"] = job.map_reward.source_digest
    if job.extractor is not None:
        if job.extractor.source_digest is not None:
            found[f"code.features.{job.extractor.name}"] = job.extractor.source_digest
        add(f"weights.features.{job.extractor.name}", job.extractor.path)
    return found
