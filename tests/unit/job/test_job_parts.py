"""A job's rewards and features, and files of weights that are looked for before anything is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.build import require_equal_in_batches
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.models.registry import model_path
from ttsvar_ray.rewards.protocol import ConstantReward, PlainReward, RewardEnsemble


def config_for(model: str, **sections: Any) -> JobConfig:
    return JobConfig.model_validate({"model": {"name": model, "device": "cpu"}, **sections})


def test_all_weights_that_are_not_there_come_at_once_with_what_brings_them(tmp_path: Path) -> None:
    (dinov2 := tmp_path / "dinov2").mkdir()
    (tmp_path / "infinity_vae_d32reg.pth").touch()
    strategy, published = {"name": "tts-var", "plan": "published"}, {"name": "infinity-2b", "device": "cpu"}
    config = JobConfig.model_validate(
        {
            "model": {**published, "path": str(tmp_path)},
            "strategy": strategy,
            "reward": {"name": "image-reward", "path": str(tmp_path / "reward")},
            "features": {"extractor": "pca", "backbone": str(dinov2)},
        }
    )
    fetch = "; `ttsvar-ray fetch JOB.yaml` brings them"
    with pytest.raises(ConfigurationError) as refused:
        resolve(config, needs_parts=True)
    assert list(refused.value.problems) == [
        f"model: expected its transformer at {tmp_path}/infinity_2b_reg.pth, found nothing there{fetch}",
        f"reward.path: expected the files of the weights at {tmp_path}/reward, found nothing there{fetch}",
        f"features.backbone: expected config.json and weights in {dinov2}{fetch}",
    ]
    assert resolve(config).plan.num_scales == 13


def test_a_model_directory_without_its_weights_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    shutil.copytree(model_path("shapes"), tmp_path / "mine")
    config = config_for(str(tmp_path / "mine"))
    resolve(config, needs_parts=True)
    missing = resolve(config).description.weights["transformer"].fetch()
    missing.unlink()
    with pytest.raises(
        ConfigurationError, match=f"^model: expected its transformer at {missing}, found nothing"
    ):
        resolve(config, needs_parts=True)


def test_published_files_with_sizes_of_ones_own_beside_them_are_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"kind": "blip-reward"}')
    config = config_for("shapes", reward={"name": "image-reward", "path": str(tmp_path)})
    with pytest.raises(ConfigurationError, match=r"expected ImageReward.pt and vocab.txt in .*, found none"):
        resolve(config, needs_parts=True)
    for name in ("ImageReward.pt", "vocab.txt"):
        (tmp_path / name).touch()
    resolve(config, needs_parts=True)


@pytest.mark.parametrize(
    "weights", ["model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"]
)
def test_a_backbone_as_transformers_saves_it_is_there(tmp_path: Path, weights: str) -> None:
    for name in ("config.json", weights):
        (tmp_path / name).touch()
    features = {"extractor": "pca", "backbone": str(tmp_path)}
    resolve(config_for("shapes", strategy={"plan": "published"}, features=features), needs_parts=True)


def test_a_folder_in_place_of_a_backbones_file_is_refused(tmp_path: Path) -> None:
    config = config_for(
        "shapes",
        strategy={"plan": "published"},
        features={"extractor": "inception", "backbone": str(tmp_path)},
    )
    with pytest.raises(ConfigurationError) as caught:
        resolve(config, needs_parts=True)
    assert str(caught.value) == (
        "features.backbone: expected the file inception_v3_google-0cc3c7bd.pth, got the folder "
        f"{tmp_path}; name the file in it"
    )


def test_a_file_in_place_of_a_rewards_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ImageReward.pt").touch()
    section = {"name": "image-reward", "path": str(tmp_path / "ImageReward.pt")}
    with pytest.raises(ConfigurationError, match=r"^reward.path: expected ImageReward.pt and vocab.txt in "):
        resolve(config_for("shapes", reward=section), needs_parts=True)


def test_settings_that_a_reward_would_not_read_are_refused_before_it_is_built() -> None:
    section = {"name": "constant", "preprocessing": "tensor", "dtype": "bfloat16"}
    with pytest.raises(ConfigurationError) as refused:
        resolve(config_for("shapes", reward=section), needs_parts=True)
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [
        "reward.preprocessing",
        "reward.dtype",
    ]


class Neighbourly(PlainReward):
    """A score that rests on what else is in its batch."""

    name = "neighbourly"

    def score(self, images: Any, texts: Any) -> Any:
        return images.mean(axis=(1, 2, 3)).astype(np.float32) + np.float32(0.5 * len(images))


def test_scores_that_a_batch_changes_are_refused_where_nothing_may_change_them() -> None:
    require_equal_in_batches(RewardEnsemble([ConstantReward()]))
    with pytest.raises(ConfigurationError, match=r"scores of neighbourly that no batch changes, .* to 3\.5 "):
        require_equal_in_batches(RewardEnsemble([ConstantReward(), Neighbourly()], name="both"))
