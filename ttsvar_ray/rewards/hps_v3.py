"""HPSv3: how much people would prefer an image for a text, by a Qwen2-VL with a small head.

Comes in: a folder with the backbone's tokenizer, image processor and config.json, `HPSv3.safetensors`, which
holds backbone and head, and `instruction.txt`, what the backbone is told. That wording is the authors' own
and not part of this package; docs/rewards.md says how to get it.

The head reads the final hidden state at the token `<|Reward|>` of the instruction. Of its two numbers, mean
and spread of the preference, the mean is the score.

Source: HPSv3 (arXiv 2508.03789). As its code has it, positions are counted through image and text alike, not
by the image's rows and columns as Qwen2-VL's own are: the weights were trained so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, Qwen2VLConfig, Qwen2VLModel
from transformers.tokenization_utils_base import AddedToken

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.rewards.vision_language import ImageReader, reading_family, without_marks
from ttsvar_ray.types import Float32Array, Preprocessing, UInt8Array
from ttsvar_ray.vision.batches import settle
from ttsvar_ray.vision.checkpoints import KeyTable, build_pretrained, load_strict, rename_keys

WEIGHTS_FILE = "HPSv3.safetensors"
INSTRUCTION_FILE = "instruction.txt"
PIXELS = 256 * 28 * 28
"""Of every image, about: its sides become the multiples of 28 that are nearest to this."""

_PROMPT = "{text_prompt}"
_MARK = "<|Reward|>"
_EMBEDDING = "language_model.embed_tokens.weight"
_KEYS: KeyTable = (
    (r"rm_head\.(.+)", r"rm_head.\1"),
    (r"(?:model\.)?visual\.(.+)", r"visual.\1"),
    (r"model\.language_model\.(.+)", r"language_model.\1"),
    # As transformers had them until 4.51.
    (r"model\.((?:embed_tokens|layers|norm)\..+)", r"language_model.\1"),
    # Nothing is generated.
    (r"lm_head\.weight", None),
)


class HpsV3(ImageReader):
    """Scores images by the preference that HPSv3 predicts; one at a time. Higher is better.

    Args:
        folder: with the files above.
        name, device: as the settings have them.
        preprocessing: its own, whatever this says; the registry refuses another.
        dtype: of the backbone, published in bfloat16; the head is float32.

    Raises:
        CheckpointError: a file is missing, the weights do not fit, or the instruction cannot be used.
    """

    def __init__(
        self, folder: Path, *, name: str, preprocessing: Preprocessing, device: str, dtype: torch.dtype
    ) -> None:
        self.name = name
        self._instruction = _read_instruction(folder / INSTRUCTION_FILE)
        super().__init__(folder, device)
        self._tokenizer.add_tokens([AddedToken(_MARK, special=True, normalized=False)])
        with reading_family(folder):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not isinstance(config, Qwen2VLConfig):
            raise CheckpointError(f"{folder}: expected Qwen2-VL's config.json, found {config.model_type}'s")
        config.text_config.vocab_size = len(self._tokenizer)
        source = folder / WEIGHTS_FILE
        if not source.is_file():
            raise CheckpointError(f"{source}: no such file; expected the published weights of HPSv3")
        weights = rename_keys(load_file(source), _KEYS, source=str(source))
        tokens = len(self._tokenizer)
        if _EMBEDDING in weights and (found := len(weights[_EMBEDDING])) != tokens:
            raise CheckpointError(
                f"{source}: expected one embedding for each of the tokenizer's {tokens} tokens, {_MARK} "
                f"among them, found {found}; take the tokenizer of Qwen2-VL-7B-Instruct"
            )
        head = {key: weights.pop(key) for key in list(weights) if key.startswith("rm_head.")}
        self._head = nn.ModuleDict({"rm_head": _head(config.text_config.hidden_size)})
        load_strict(self._head, head, source=str(source))
        where = torch.device(device)
        model = build_pretrained(Qwen2VLModel, config, weights, source=str(source), dtype=dtype)
        self._model = settle(model, where, dtype)
        settle(self._head, where, torch.float32)

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n] means of the preference; `images` uint8 RGB [n, height, width, 3]."""
        scores = [self._score(image, text) for image, text in zip(images, texts, strict=True)]
        return np.array(scores, np.float32)

    def _score(self, image: UInt8Array, text: str) -> float:
        seen = self._pixels(
            images=Image.fromarray(image),
            size={"shortest_edge": PIXELS, "longest_edge": PIXELS},
            return_tensors="pt",
        )
        said = self._instruction.replace(_PROMPT, without_marks(text))
        inputs = self._inputs(seen, said)
        ids = inputs["input_ids"]
        # [3, 1, tokens]: of time, row and column, all the same.
        places = torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)
        with torch.inference_mode():
            hidden = self._model(**inputs, position_ids=places, use_cache=False).last_hidden_state
            read = hidden[ids == self._id(_MARK)].float()
            return float(self._head["rm_head"](read)[0, 0])


def _head(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.ReLU(),
        nn.Dropout(0.05),
        nn.Linear(1024, 16),
        nn.ReLU(),
        nn.Linear(16, 2),
    )


def _read_instruction(path: Path) -> str:
    """Return what the backbone is told, with every line end that the file has."""
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; expected the authors' instruction, which this package does not bring: "
            "docs/rewards.md says how to write it from their code"
        )
    text = path.read_text(encoding="utf-8")
    if text.count(_PROMPT) != 1 or text.count(_MARK) != 1 or text.count("<|") != 1:
        raise CheckpointError(
            f"{path}: expected {_PROMPT} and {_MARK} once each and no other special token, found "
            f"{text.count(_PROMPT)} and {text.count(_MARK)}, and {text.count('<|')} special tokens in all"
        )
    return text
