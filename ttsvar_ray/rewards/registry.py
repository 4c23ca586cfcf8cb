"""Every reward by its name in the settings: one entry each, read by the costs and the doctor too.

To add one: a file with its loader, an entry here, a section in docs/rewards.md. A reward of the user's own
needs none of these: its name is an import path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttsvar_ray.errors import ConfigurationError, reading_weights
from ttsvar_ray.own_code import OwnCode, is_own, load_own_class, named_object
from ttsvar_ray.rewards.protocol import Reward
from ttsvar_ray.types import Precision, Preprocessing
from ttsvar_ray.vision.published import NO_COST, NetworkCost, PublishedFiles, PublishedWeights, read_precision

METHODS = ("preprocess", "encode_text", "score_prepared", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardEntry:
    """All that is said of one reward.

    Attributes:
        name: in the settings and in output rows.
        loader: import path of what makes it of its folder: `(folder, *, name, preprocessing, device, dtype,
            **settings)`. Imported only when it is called.
        settings: of the loader, as published.
        weights: what they cost, where they come from.
        has_folder: whether it reads files at all.
        own_pixels: whether its own image processor makes the pixels, whatever the preprocessing.
    """

    name: str
    loader: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: PublishedWeights
    has_folder: bool = True
    own_pixels: bool = False

    def refuse_unread(self, *, path: str | Path | None, preprocessing: str, dtype: Precision | str) -> None:
        """Refuse settings that it would not read.

        Raises:
            ConfigurationError: with all of them.
        """
        given = _changed(preprocessing, dtype)
        reason = "has its own image processor"
        if not self.has_folder:
            reason = "reads no files and looks at no pixels"
            given |= {} if path is None else {"path": str(path)}
        elif self.own_pixels:
            given.pop("dtype", None)
        else:
            return
        if given:
            raise ConfigurationError(
                [
                    f"reward.{setting}: the reward {self.name!r} {reason}, got {value!r}; remove it"
                    for setting, value in given.items()
                ]
            )


_CLIP = "openai/clip-vit-large-patch14"
_CLIP_TOKENIZER = PublishedFiles(_CLIP, ("vocab.json", "merges.txt"))
_SAVED = ("config.json", "model.safetensors")
_QWEN_FILES = (
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
)
_VIT_H_14 = NetworkCost(
    parameters=986_109_441,
    image_flops=334_589_163_520,
    text_flops=47_089_287_168,
    activation_bytes=16_349_312,
)
_VIT_L_14 = NetworkCost(
    parameters=427_616_513,
    image_flops=162_025_168_896,
    text_flops=13_298_503_680,
    activation_bytes=14_770_304,
)


def _hps(name: str, file: str) -> RewardEntry:
    return RewardEntry(
        name=name,
        loader="ttsvar_ray.rewards.clip_reward:load_hps",
        settings={"file": file},
        weights=PublishedWeights(
            cost=_VIT_H_14,
            files=(PublishedFiles("xswu/HPSv2", (file,)), _CLIP_TOKENIZER),
            licence="Apache-2.0",
        ),
    )


def _vision_language(name: str, source: str, weights: tuple[str, ...], licence: str) -> RewardEntry:
    """Return an entry; its cost depends on the size of the images (`costs.vision_language`)."""
    return RewardEntry(
        name=name,
        loader="ttsvar_ray.rewards.vision_language:load_vision_language",
        weights=PublishedWeights(
            cost=None,
            files=(PublishedFiles(source, ("config.json", *weights, *_QWEN_FILES)),),
            licence=licence,
        ),
        own_pixels=True,
    )


_ENTRIES = (
    RewardEntry(
        name="image-reward",
        loader="ttsvar_ray.rewards.image_reward:load_image_reward",
        weights=PublishedWeights(
            # The text is read in the light of the image, so once per image.
            cost=NetworkCost(parameters=444_183_552, image_flops=137_781_116_928, activation_bytes=9_809_024),
            files=(
                PublishedFiles("THUDM/ImageReward", ("ImageReward.pt",)),
                PublishedFiles("google-bert/bert-base-uncased", ("vocab.txt",)),
            ),
            licence="Apache-2.0",
        ),
    ),
    _hps("hps-v2.1", "HPS_v2.1_compressed.pt"),
    _hps("hps-v2.0", "HPS_v2_compressed.pt"),
    RewardEntry(
        name="clip-score",
        loader="ttsvar_ray.rewards.clip_reward:load_clip",
        settings={"cleaning": "clip"},
        weights=PublishedWeights(
            cost=_VIT_L_14,
            files=(PublishedFiles(_CLIP, (*_SAVED, *_CLIP_TOKENIZER.names)),),
            licence="see its model card",
        ),
    ),
    RewardEntry(
        name="pick-score",
        loader="ttsvar_ray.rewards.clip_reward:load_clip",
        # As transformers' processor for laion/CLIP-ViT-H-14-laion2B-s32B-b79K does it.
        settings={"cleaning": "transformers", "library": "transformers", "scaled": True},
        weights=PublishedWeights(
            cost=_VIT_H_14,
            files=(PublishedFiles("yuvalkirstain/PickScore_v1", _SAVED), _CLIP_TOKENIZER),
            licence="see its model card",
        ),
    ),
    RewardEntry(
        name="aesthetic-v2.5",
        loader="ttsvar_ray.rewards.aesthetic_reward:load_aesthetic_v25",
        # TTS-VAR divides the predictor's 1 to 10 by 10.
        settings={"head": "aesthetic_predictor_v2_5.pth", "scale": 0.1},
        weights=PublishedWeights(
            cost=NetworkCost(
                parameters=428_225_600, image_flops=666_448_114_176, activation_bytes=88_179_840
            ),
            files=(
                PublishedFiles(
                    "https://github.com/discus0434/aesthetic-predictor-v2-5/raw/main/models/"
                    "aesthetic_predictor_v2_5.pth",
                    ("aesthetic_predictor_v2_5.pth",),
                ),
                PublishedFiles("google/siglip-so400m-patch14-384", _SAVED, "siglip"),
            ),
            licence="encoder Apache-2.0, head AGPL-3.0",
        ),
    ),
    RewardEntry(
        name="laion-aesthetic",
        loader="ttsvar_ray.rewards.aesthetic_reward:load_laion_aesthetic",
        settings={"head": "sac+logos+ava1-l14-linearMSE.pth"},
        weights=PublishedWeights(
            cost=_VIT_L_14,
            files=(
                PublishedFiles(
                    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
                    "sac+logos+ava1-l14-linearMSE.pth",
                    ("sac+logos+ava1-l14-linearMSE.pth",),
                ),
                PublishedFiles(_CLIP, _SAVED, "clip"),
            ),
            licence="head Apache-2.0, encoder: see its model card",
        ),
    ),
    _vision_language(
        "qwen3-vl-2b",
        "Qwen/Qwen3-VL-2B-Instruct@89644892e4d85e24eaac8bacfd4f463576704203",
        ("model.safetensors",),
        "Apache-2.0",
    ),
    _vision_language(
        "qwen2.5-vl-3b",
        "Qwen/Qwen2.5-VL-3B-Instruct@66285546d2b821cf421d4f5eb2576359d3770cd3",
        (
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ),
        "Qwen Research License: not for commercial use",
    ),
    RewardEntry(
        name="hps-v3",
        loader="ttsvar_ray.rewards.hps_v3:HpsV3",
        weights=PublishedWeights(
            cost=None,
            files=(
                PublishedFiles("MizzenAI/HPSv3", ("HPSv3.safetensors",)),
                PublishedFiles("Qwen/Qwen2-VL-7B-Instruct", ("config.json", *_QWEN_FILES)),
            ),
            licence="see its repository; backbone Apache-2.0",
        ),
        own_pixels=True,
    ),
    RewardEntry(
        name="hps-v3-plus-plus",
        loader="ttsvar_ray.rewards.hps_v3:HpsV3PlusPlus",
        weights=PublishedWeights(
            cost=None,
            files=(
                PublishedFiles("Junjun2333/HPSv3-PlusPlus", ("hpsv3++.pth",)),
                PublishedFiles("Qwen/Qwen3-VL-8B-Instruct", ("config.json", *_QWEN_FILES)),
            ),
            licence="Apache-2.0",
        ),
        own_pixels=True,
    ),
    # The built-in model's own, in its directory; its config.json says its sizes.
    RewardEntry(
        name="shapes",
        loader="ttsvar_ray.rewards.image_reward:load_image_reward",
        weights=PublishedWeights(cost=None, files=(), licence="Apache-2.0"),
    ),
    # Every image scores 0.
    RewardEntry(
        name="constant",
        loader="ttsvar_ray.rewards.protocol:ConstantReward",
        weights=PublishedWeights(cost=NO_COST, files=(), licence="Apache-2.0"),
        has_folder=False,
    ),
)

REWARDS: dict[str, RewardEntry] = {entry.name: entry for entry in _ENTRIES}
"""By name. Costs are counted from the networks (tests/unit/rewards/test_reward_entries.py counts them again);
the commands that fetch files follow the publishers' pages and were not tried against the hub."""


def build_reward(
    name: str,
    *,
    path: str | Path | None = None,
    device: str = "cpu",
    preprocessing: str = "published",
    dtype: Precision | str = Precision.FLOAT32,
    options: Mapping[str, Any] | None = None,
) -> Reward:
    """Build a reward.

    Args:
        name: of an entry, or the import path of a class.
        path: the directory with its files.
        preprocessing: `published` or `tensor` (see `types.Preprocessing`).
        dtype: of its networks, see `types.Precision`; all but float32 move scores.
        options: of one's own reward; see `find_own_reward`.

    Raises:
        ConfigurationError: unknown name, a setting that is missing or has no use, or a package that the
            reward needs and that is not installed.
        CheckpointError: the directory does not hold what it must.
    """
    precision = read_precision(dtype, setting="reward.dtype")
    if is_own(name):
        own = find_own_reward(
            name, path=path, device=device, preprocessing=preprocessing, dtype=precision, options=options
        )
        mine: Reward = own.make(setting="reward.name")
        if missing := [attribute for attribute in ("name", "recipe") if not hasattr(mine, attribute)]:
            raise ConfigurationError(f"reward.name: expected a {' and a '.join(missing)} in {name}, got none")
        return mine
    if name not in REWARDS:
        raise ConfigurationError(f"reward.name: expected one of {', '.join(REWARDS)}, got {name!r}")
    entry = REWARDS[name]
    entry.refuse_unread(path=path, preprocessing=preprocessing, dtype=precision)
    load = named_object(entry.loader)
    if not entry.has_folder:
        constant: Reward = load(**entry.settings)
        return constant
    if path is None:
        raise ConfigurationError(
            f"reward.path: the reward {name!r} needs the directory of its weights, got nothing; "
            "set reward.path"
        )
    from ttsvar_ray.vision.batches import torch_dtype

    with reading_weights(path):
        reward = load(
            Path(path),
            name=name,
            preprocessing=Preprocessing(preprocessing),
            device=device,
            dtype=torch_dtype(precision),
            **entry.settings,
        )
    reward.tf32 = precision is Precision.TF32
    network: Reward = reward
    return network


def find_own_reward(
    name: str,
    *,
    path: str | Path | None = None,
    device: str = "cpu",
    preprocessing: str = "published",
    dtype: Precision | str = Precision.FLOAT32,
    options: Mapping[str, Any] | None = None,
    setting: str = "reward.name",
) -> OwnCode:
    """Import the class of one's own reward; nothing is made of it.

    Returns:
        The class, with the keywords that it is called with: `device`, its options, and whichever of `path`,
        `preprocessing` and `dtype` is given and no default.

    Raises:
        ConfigurationError: no such class, or one that is no reward or takes other arguments.
    """
    files = {} if path is None else {"path": Path(path)}
    given = {"device": device, **files, **_changed(preprocessing, dtype)}
    return load_own_class(
        name, methods=METHODS, given=given, options=options, setting=setting, what="a reward"
    )


def _changed(preprocessing: str, dtype: Precision | str) -> dict[str, str]:
    """Return the settings that ask for anything but published pixels and float32 numbers."""
    given = {"preprocessing": Preprocessing(preprocessing).value, "dtype": Precision(dtype).value}
    usual = {Preprocessing.PUBLISHED.value, Precision.FLOAT32.value, Precision.TF32.value}
    return {name: value for name, value in given.items() if value not in usual}
