"""What the Infinity-2B jobs read, in miniature: repositories in the published formats."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from tests.support.fake_hub import FakeHub
from tests.support.published_infinity import write_published
from tests.support.recorded import recorded_rewards
from ttsvar_ray.models.infinity.presets import PRESETS, TEXT_ENCODER_FOLDER, InfinityPreset
from ttsvar_ray.rewards.blip import PUBLISHED_IMAGE_REWARD

SMALLER = {"depth": 2, "embed_dim": 64, "num_heads": 4, "block_chunks": 2}
SMALLER_TOKENIZER = {
    "codebook_dim": 8,
    "base_channels": 32,
    "num_res_blocks": 1,
    "multipliers": (1, 1, 1, 1, 1),
}

SITECUSTOMIZE = f"""
import dataclasses, importlib.abc, importlib.util, sys

class Smaller(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "ttsvar_ray.models.infinity.presets":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        read = spec.loader.exec_module
        def read_and_shrink(module):
            read(module)
            preset = module.PRESETS["infinity-2b"]
            tokenizer = dataclasses.replace(preset.tokenizer, **{SMALLER_TOKENIZER!r})
            module.PRESETS["infinity-2b"] = dataclasses.replace(preset, tokenizer=tokenizer, **{SMALLER!r})
        spec.loader.exec_module = read_and_shrink
        return spec

sys.meta_path.insert(0, Smaller())
"""
"""Every Python that finds this module on its path takes `infinity-2b` for the model of `smaller_2b`."""


def smaller_2b() -> InfinityPreset:
    """Infinity-2B with its file names, sizes of images and scales, but hardly any weights."""
    preset = PRESETS["infinity-2b"]
    tokenizer = dataclasses.replace(preset.tokenizer, **SMALLER_TOKENIZER)  # type: ignore[arg-type]
    return dataclasses.replace(preset, tokenizer=tokenizer, **SMALLER)  # type: ignore[arg-type]


def small_hub(folder: Path) -> FakeHub:
    """Write the repositories that the Infinity-2B jobs are fetched from."""
    infinity = write_published(folder / "infinity", smaller_2b())
    text = folder / "flan"
    (infinity / TEXT_ENCODER_FOLDER).rename(text)
    reward, words, dinov2 = folder / "reward", folder / "bert", folder / "dinov2"
    for target, name in ((reward, "ImageReward.pt"), (words, "vocab.txt")):
        target.mkdir()
        shutil.copy(recorded_rewards() / "imagereward" / name, target)
    torch.manual_seed(2)
    sizes = Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14
    )
    Dinov2WithRegistersModel(sizes).save_pretrained(dinov2)
    folders = {
        "FoundationVision/Infinity": infinity,
        "google/flan-t5-xl": text,
        "THUDM/ImageReward": reward,
        "google-bert/bert-base-uncased": words,
        "facebook/dinov2-with-registers-large": dinov2,
    }
    # Downloads into one folder are told apart by their commits.
    commits = {name: f"{index:x}" * 40 for index, name in enumerate(folders, start=1)}
    return FakeHub({name: (commits[name], path) for name, path in folders.items()})


def write_reward_sizes(folder: Path) -> None:
    """Write the config.json that tells ImageReward's loader the sizes of the recorded network."""
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": 114,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
    }
    sizes = dataclasses.replace(
        PUBLISHED_IMAGE_REWARD,
        vision=dataclasses.replace(PUBLISHED_IMAGE_REWARD.vision, **vision),
        text=dataclasses.replace(PUBLISHED_IMAGE_REWARD.text, **text),
    )
    (folder / "config.json").write_text(json.dumps(sizes.to_json()))
