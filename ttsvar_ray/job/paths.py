"""What the relative paths of a job mean, on the driver and on the workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.values import Shard
from ttsvar_ray.models.registry import BUILT_IN, published_names
from ttsvar_ray.models.weight_source import is_hub_reference
from ttsvar_ray.storage.uris import is_uri, split_query


def resolve_output(path: str, *, submitted: bool, shard: Shard | None = None) -> str:
    """Return the output folder as an absolute path, or the URI that it is.

    Args:
        path: as in the settings.
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
