"""ImageReward: a BLIP network that scores how well an image shows a text.

The published 447 M checkpoint and the small reward of the built-in model run through this one class.

A reward directory holds `config.json` (`BlipRewardConfig`), `model.safetensors` and tokenizer files.
A folder with the published files is read as it is: `ImageReward.pt`, and `vocab.txt` or `tokenizer.json`
of bert-base-uncased, and, only for other sizes than the published one, a `config.json` as above.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor
from transformers import BertTokenizer

from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.rewards.blip import (
    IMAGE_REWARD_KEYS,
    PUBLISHED_IMAGE_REWARD,
    BlipRewardConfig,
    BlipRewardNetwork,
)
from ttsvar_ray.rewards.network_reward import NetworkReward
from ttsvar_ray.rewards.protocol import RewardText
from ttsvar_ray.types import Preprocessing
from ttsvar_ray.vision.batches import rows_without_tail, settle
from ttsvar_ray.vision.checkpoints import from_folder, load_strict, read_published, rename_keys
from ttsvar_ray.vision.pixels import PixelRecipe

WEIGHTS_FILE = "model.safetensors"
PUBLISHED_FILE = "ImageReward.pt"


class ImageReward(NetworkReward):
    """Scores uint8 images against texts (`rewards.protocol.Reward`). Higher is better, about unit scale.

    The text is read in the light of the image, so only its token ids are kept from one image to the next.

    Args:
        config: sizes and preprocessing.
        weights: tensors under the network's names; all must fit.
        dtype: of weights and activations. bfloat16 moves scores by about 0.05, which with lambda = 10
            changes resampling weights by half: float32 is the default.
        preprocessing: PIL as published, or tensors on the device.
        where: where the weights came from, for messages.
    """

    def __init__(
        self,
        *,
        config: BlipRewardConfig,
        weights: Mapping[str, Tensor],
        tokenizer: BertTokenizer,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        preprocessing: Preprocessing = Preprocessing.PUBLISHED,
        where: str = "weights",
    ) -> None:
        super().__init__(
            name=config.name,
            recipe=PixelRecipe(
                size=config.vision.image_size,
                mean=config.pixel_mean,
                std=config.pixel_std,
                preprocessing=preprocessing,
            ),
            device=device,
            dtype=dtype,
            cpu_rows=rows_without_tail(
                config.vision.num_tokens * config.vision.intermediate_size,
                config.max_text_tokens * config.text.intermediate_size,
            ),
        )
        self.config = config
        self.tokenizer = tokenizer
        if len(tokenizer) > config.text.vocab_size:
            raise ConfigurationError(
                f"{where}: the tokenizer has {len(tokenizer)} entries, the network only "
                f"{config.text.vocab_size} (text.vocab_size); use the tokenizer that belongs to the weights"
            )
        network = BlipRewardNetwork(config)
        load_strict(network, weights, source=where)
        self.network = settle(network, self.device, dtype)

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write our own directory format (converts a published checkpoint once and for all)."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config.to_json(), indent=1) + "\n")
        weights = {
            key: value.to(dtype).contiguous().cpu() for key, value in self.network.state_dict().items()
        }
        # Not save_file: it makes files that only their owner can read.
        (folder / WEIGHTS_FILE).write_bytes(serialize(weights, metadata={"format": "pt"}))
        self.tokenizer.save_pretrained(folder)

    def _encode(self, text: str) -> RewardText:
        uncut = self.tokenizer(text, verbose=False)["input_ids"]
        ids, mask = tokenize(self.tokenizer, [text], self.config.max_text_tokens)
        content = (ids.to(self.device), mask.to(self.device))
        return RewardText(content=content, truncated=len(uncut) > self.config.max_text_tokens)

    def _forward(self, pixels_BCHW: Tensor, contents: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        ids_BT = torch.cat([ids for ids, _ in contents])
        mask_BT = torch.cat([mask for _, mask in contents])
        scores: Tensor = self.network(pixels_BCHW, ids_BT, mask_BT)
        return scores


def load_image_reward(
    folder: Path,
    *,
    name: str = PUBLISHED_IMAGE_REWARD.name,
    preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ImageReward:
    """Load a reward directory: our own format, or a folder with the published files.

    Args:
        folder: see this module's docstring.
        name: of the published files; a config.json says its own.
        preprocessing, device, dtype: as in `ImageReward`.

    Raises:
        CheckpointError: a file is missing, or the weights do not fit.
        ConfigurationError: config.json is not a reward's.
    """
    config_file = folder / "config.json"
    own, published = folder / WEIGHTS_FILE, folder / PUBLISHED_FILE
    if own.is_file():
        source, weights = own, load_file(own)
        if not config_file.is_file():
            raise CheckpointError(f"{folder}: {WEIGHTS_FILE} is there but config.json is missing")
    elif published.is_file():
        source, weights = published, read_image_reward(published)
    else:
        found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else "no such folder"
        raise CheckpointError(
            f"{folder}: expected {WEIGHTS_FILE} with config.json, or the published {PUBLISHED_FILE} with "
            f"vocab.txt; found {found}"
        )
    config = replace(PUBLISHED_IMAGE_REWARD, name=name)
    if config_file.is_file():
        config = BlipRewardConfig.from_json(json.loads(config_file.read_text()), where=str(config_file))
    return ImageReward(
        config=config,
        weights=weights,
        tokenizer=load_tokenizer(folder),
        device=device,
        dtype=dtype,
        preprocessing=preprocessing,
        where=str(source),
    )


def tokenize(tokenizer: BertTokenizer, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Return int64 (ids, mask), each [n, length], cut and padded to exactly `length` tokens."""
    encoded = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    return encoded["input_ids"], encoded["attention_mask"]


def read_image_reward(path: Path) -> dict[str, Tensor]:
    """Read ImageReward.pt under the names of `BlipRewardNetwork`.

    Raises:
        CheckpointError: no such file, something else than tensors, or an unknown key.
    """
    published = read_published(path, expected=f"the published {PUBLISHED_FILE}")
    return rename_keys(published, IMAGE_REWARD_KEYS, source=str(path))


def load_tokenizer(folder: Path) -> BertTokenizer:
    """Load a BERT tokenizer from tokenizer.json or vocab.txt, never from a hub.

    Raises:
        CheckpointError: neither file is there.
    """
    if (folder / "tokenizer.json").is_file():
        tokenizer: BertTokenizer = from_folder(BertTokenizer, folder)
        return tokenizer
    if (folder / "vocab.txt").is_file():
        words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    raise CheckpointError(
        f"{folder}: expected tokenizer.json or vocab.txt (of bert-base-uncased for the published "
        "ImageReward); copy it beside the weights"
    )
