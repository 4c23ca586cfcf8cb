"""From a reward's name in the settings to the reward."""

from __future__ import annotations

from pathlib import Path

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.rewards.protocol import Reward
from ttsvar_ray.types import Preprocessing

REWARD_NAMES = ("image-reward", "shapes", "constant")
"""image-reward: the published checkpoint or a directory converted from it; shapes: the built-in model's own
reward directory; constant: every image scores 0."""


def build_reward(
    name: str, *, path: str | Path | None = None, device: str = "cpu", preprocessing: str = "published"
) -> Reward:
    """Build a reward.

    Args:
        name: one of `REWARD_NAMES`.
        path: the directory with its weights (image-reward, shapes), None for constant.
        device: torch device name.
        preprocessing: `published` or `tensor` (see `types.Preprocessing`).

    Raises:
        ConfigurationError: unknown name, or a path that is missing or has no use.
        CheckpointError: the directory does not hold what it must.
    """
    if name not in REWARD_NAMES:
        raise ConfigurationError(f"reward.name: expected one of {', '.join(REWARD_NAMES)}, got {name!r}")
    if name == "constant":
        if preprocessing != Preprocessing.PUBLISHED:
            raise ConfigurationError(
                f"reward.preprocessing: the constant reward looks at no pixels, got {preprocessing!r}; "
                "remove it"
            )
        if path is not None:
            raise ConfigurationError(
                f"reward.path: the constant reward reads no files, got {str(path)!r}; remove it"
            )
        from ttsvar_ray.rewards.constant import ConstantReward

        return ConstantReward()
    if path is None:
        raise ConfigurationError(
            f"reward.path: the reward {name!r} needs the directory of its weights, got nothing; "
            "set reward.path"
        )
    from ttsvar_ray.rewards.image_reward import ImageReward

    return ImageReward.from_directory(path, device=device, preprocessing=Preprocessing(preprocessing))
