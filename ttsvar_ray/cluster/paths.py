"""What the relative paths of a job mean, on the driver and on the workers."""

from __future__ import annotations

from pathlib import Path

from ttsvar_ray.config.sections import JobConfig
from ttsvar_ray.models.hub import is_hub_reference
from ttsvar_ray.models.registry import BUILT_IN, published_names
from ttsvar_ray.storage import is_uri


def resolve_output(path: str, *, submitted: bool) -> str:
    """Return the output folder as an absolute path, or the URI that it is.

    Args:
        path: as in the settings.
        submitted: whether this is the entry point of `ray job submit`. Its working directory is a copy that
            Ray deletes with the session, so that a relative path would lose the output: there it is taken
            from the home folder of the user that runs the cluster.
    """
    if is_uri(path):
        return path
    given = Path(path).expanduser()
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

    model = config.model
    model_paths = {"path": absolute(model.path), "text_encoder": absolute(model.text_encoder)}
    if model.name != BUILT_IN and model.name not in published_names():
        model_paths["name"] = absolute(model.name)
    members = config.reward.members
    return config.model_copy(
        update={
            "model": model.model_copy(update=model_paths),
            "reward": config.reward.model_copy(
                update={
                    "path": absolute(config.reward.path),
                    "members": members and {name: absolute(path) for name, path in members.items()},
                }
            ),
            "features": config.features.model_copy(update={"backbone": absolute(config.features.backbone)}),
        }
    )
