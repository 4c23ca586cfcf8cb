"""ImageReward: a BLIP network that scores how well an image shows a text.

The published 447 M checkpoint and the small reward of the built-in model run through this one class.

A reward directory holds `config.json` (`BlipRewardConfig`), `model.safetensors` and tokenizer files.
A folder with the published files is read as it is: `ImageReward.pt`, and `vocab.txt` or `tokenizer.json`
of bert-base-uncased, and, only for other sizes than the published one, a `config.json` as above.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor
from transformers import BertTokenizer

from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.rewards.blip_config import PUBLISHED_IMAGE_REWARD, BlipRewardConfig
from ttsvar_ray.rewards.blip_network import BlipRewardNetwork
from ttsvar_ray.rewards.image_reward_checkpoint import load_strict, read_published
from ttsvar_ray.rewards.pixels import preprocess, preprocess_on_device
from ttsvar_ray.types import Float32Array, Preprocessing, UInt8Array

WEIGHTS_FILE = "model.safetensors"
PUBLISHED_FILE = "ImageReward.pt"
MOST_CACHED_TEXTS = 4096


class ImageReward:
    """Scores uint8 images against texts (`rewards.protocol.Reward`). Higher is better, about unit scale.

    A row's score does not depend on the other rows: batches of one image and heads of few rows are
    padded (see `BlipRewardNetwork.head`), texts always have the same padded length, and on accelerators,
    where kernels are chosen by shape, every batch is padded to `batch_rows`.

    Args:
        config: sizes and preprocessing.
        weights: tensors under the network's names; all must fit.
        tokenizer: turns texts into ids.
        device: torch device name.
        dtype: of weights and activations. bfloat16 moves scores by about 0.05, which with lambda = 10
            changes resampling weights by half: float32 is the default.
        batch_rows: most images in one forward.
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
        batch_rows: int = 32,
        preprocessing: Preprocessing = Preprocessing.PUBLISHED,
        where: str = "weights",
    ) -> None:
        self.config = config
        self.name = config.name
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.dtype = dtype
        self.batch_rows = batch_rows
        self.preprocessing = preprocessing
        if len(tokenizer) > config.text.vocab_size:
            raise ConfigurationError(
                f"{where}: the tokenizer has {len(tokenizer)} entries, the network only "
                f"{config.text.vocab_size} (text.vocab_size); use the tokenizer that belongs to the weights"
            )
        network = BlipRewardNetwork(config)
        load_strict(network, weights, where)
        self.network = network.to(device=self.device, dtype=dtype).eval().requires_grad_(False)
        self._text_cache: dict[str, tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_directory(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_rows: int = 32,
        preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    ) -> ImageReward:
        """Load a reward directory: our own format, or a folder with the published files.

        Raises:
            CheckpointError: a file is missing, or the weights do not fit.
            ConfigurationError: config.json is not a reward's.
        """
        folder = Path(path)
        config_file = folder / "config.json"
        own, published = folder / WEIGHTS_FILE, folder / PUBLISHED_FILE
        if own.is_file():
            source, weights = own, load_file(own)
            if not config_file.is_file():
                raise CheckpointError(f"{folder}: {WEIGHTS_FILE} is there but config.json is missing")
        elif published.is_file():
            source, weights = published, read_published(published)
        else:
            found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else "no such folder"
            raise CheckpointError(
                f"{folder}: expected {WEIGHTS_FILE} with config.json, or the published {PUBLISHED_FILE} with "
                f"vocab.txt; found {found}"
            )
        config = PUBLISHED_IMAGE_REWARD
        if config_file.is_file():
            config = BlipRewardConfig.from_json(json.loads(config_file.read_text()), where=str(config_file))
        return cls(
            config=config,
            weights=weights,
            tokenizer=load_tokenizer(folder),
            device=device,
            dtype=dtype,
            batch_rows=batch_rows,
            preprocessing=preprocessing,
            where=str(source),
        )

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

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n] scores.

        Args:
            images: uint8 RGB [n, height, width, 3].
            texts: n texts, one per image.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ValueError(
                f"images: expected uint8 [n, height, width, 3], got {images.dtype} {images.shape}"
            )
        if len(images) != len(texts):
            raise ValueError(f"texts: expected one per image ({len(images)}), got {len(texts)}")
        chunks = [
            self._score_chunk(images[start : start + self.batch_rows], texts[start : start + self.batch_rows])
            for start in range(0, len(images), self.batch_rows)
        ]
        return np.concatenate(chunks) if chunks else np.zeros(0, np.float32)

    def _score_chunk(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        rows = len(images)
        # One-image convolutions round differently on CPUs; accelerators choose kernels by shape.
        wanted = max(2, rows) if self.device.type == "cpu" else self.batch_rows
        if wanted > rows:
            images = np.concatenate([images, np.repeat(images[-1:], wanted - rows, axis=0)])
            texts = [*texts, *[texts[-1]] * (wanted - rows)]
        ids, mask = self._encode_texts(texts)
        with torch.inference_mode():
            scores = self.network(
                self._pixels(images).to(self.device, self.dtype),
                ids.to(self.device),
                mask.to(self.device),
            )
        result: Float32Array = scores[:rows].float().cpu().numpy()
        return result

    def _pixels(self, images: UInt8Array) -> Tensor:
        size, mean, std = self.config.vision.image_size, self.config.pixel_mean, self.config.pixel_std
        if self.preprocessing is Preprocessing.TENSOR:
            return preprocess_on_device(images, size, mean, std, self.device)
        return torch.from_numpy(preprocess(images, size, mean, std))

    def _encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return int64 ids and mask [n, max_text_tokens]; each distinct text is tokenised once."""
        if len(self._text_cache) > MOST_CACHED_TEXTS:
            self._text_cache.clear()
        for text in texts:
            if text not in self._text_cache:
                self._text_cache[text] = tokenize(self.tokenizer, [text], self.config.max_text_tokens)
        pairs = [self._text_cache[text] for text in texts]
        return torch.cat([ids for ids, _ in pairs]), torch.cat([mask for _, mask in pairs])


def tokenize(tokenizer: BertTokenizer, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Return int64 (ids, mask), each [n, length], cut and padded to exactly `length` tokens."""
    encoded = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    return encoded["input_ids"], encoded["attention_mask"]


def load_tokenizer(folder: Path) -> BertTokenizer:
    """Load a BERT tokenizer from tokenizer.json or vocab.txt, never from a hub.

    Raises:
        CheckpointError: neither file is there.
    """
    if (folder / "tokenizer.json").is_file():
        tokenizer: BertTokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
        return tokenizer
    if (folder / "vocab.txt").is_file():
        words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    raise CheckpointError(
        f"{folder}: expected tokenizer.json or vocab.txt (of bert-base-uncased for the published "
        "ImageReward); copy it beside the weights"
    )
