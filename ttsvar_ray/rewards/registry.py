"""From a reward's name in the settings to the reward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ttsvar_ray.errors import ConfigurationError, reading_weights
from ttsvar_ray.rewards.protocol import Reward
from ttsvar_ray.types import Preprocessing

REWARD_NAMES = (
    "image-reward",
    "hps-v2.1",
    "hps-v2.0",
    "clip-score",
    "pick-score",
    "aesthetic-v2.5",
    "laion-aesthetic",
    "shapes",
    "constant",
)
"""docs/rewards.md says what each is and which files it reads. shapes: the built-in model's own reward
directory; constant: every image scores 0."""

DTYPES = ("float32", "bfloat16")


def build_reward(
    name: str,
    *,
    path: str | Path | None = None,
    device: str = "cpu",
    preprocessing: str = "published",
    dtype: str = "float32",
) -> Reward:
    """Build a reward.

    Args:
        name: one of `REWARD_NAMES`.
        path: the directory with its files, None for constant.
        device: torch device name.
        preprocessing: `published` or `tensor` (see `types.Preprocessing`).
        dtype: of its networks, one of `DTYPES`; bfloat16 moves scores.

    Raises:
        ConfigurationError: unknown name, a setting that is missing or has no use, or a package that the
            reward needs and that is not installed.
        CheckpointError: the directory does not hold what it must.
    """
    if name not in REWARD_NAMES:
        raise ConfigurationError(f"reward.name: expected one of {', '.join(REWARD_NAMES)}, got {name!r}")
    if dtype not in DTYPES:
        raise ConfigurationError(f"reward.dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if name == "constant":
        return _constant(path, preprocessing, dtype)
    if path is None:
        raise ConfigurationError(
            f"reward.path: the reward {name!r} needs the directory of its weights, got nothing; "
            "set reward.path"
        )
    import torch

    settings: dict[str, Any] = {"device": device, "dtype": getattr(torch, dtype)}
    if name in ("hps-v2.0", "hps-v2.1"):
        from ttsvar_ray.rewards.clip_reward import load_hps

        # HPS resizes tensors as published: both ways are one, and an ensemble with it may name either.
        with reading_weights(path):
            return load_hps(name, Path(path), **settings)
    load = _loader(name)
    with reading_weights(path):
        return load(Path(path), preprocessing=Preprocessing(preprocessing), **settings)


def _loader(name: str) -> Callable[..., Reward]:
    """Return what loads a reward from a directory; its networks are imported only now."""
    if name == "clip-score":
        from ttsvar_ray.rewards.clip_reward import load_clip_score

        return load_clip_score
    if name == "pick-score":
        from ttsvar_ray.rewards.clip_reward import load_pick_score

        return load_pick_score
    if name == "aesthetic-v2.5":
        from ttsvar_ray.rewards.aesthetic_reward import load_aesthetic_v25

        return load_aesthetic_v25
    if name == "laion-aesthetic":
        from ttsvar_ray.rewards.aesthetic_reward import load_laion_aesthetic

        return load_laion_aesthetic
    from ttsvar_ray.rewards.image_reward import ImageReward

    return ImageReward.from_directory


def _constant(path: str | Path | None, preprocessing: str, dtype: str) -> Reward:
    given = {
        "path": None if path is None else str(path),
        "preprocessing": None if preprocessing == Preprocessing.PUBLISHED else preprocessing,
        "dtype": None if dtype == "float32" else dtype,
    }
    for setting, value in given.items():
        if value is not None:
            raise ConfigurationError(
                f"reward.{setting}: the constant reward reads no files and looks at no pixels, "
                f"got {value!r}; remove it"
            )
    from ttsvar_ray.rewards.constant import ConstantReward

    return ConstantReward()
