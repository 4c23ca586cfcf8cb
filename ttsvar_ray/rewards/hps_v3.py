"""HPSv3 and HPSv3++: how much people would prefer an image for a text, by a Qwen-VL with a small head.

Comes in: a folder with the backbone's tokenizer, image processor and config.json, the weights, which hold
backbone and head, and `instruction.txt`, what the backbone is told. That wording is the authors' own and not
part of this package; docs/rewards.md says how to get it.

The head reads the final hidden state at the token `<|Reward|>` of the instruction. Of its two numbers, mean
and spread of the preference, the mean is the score.

In HPSv3++ a small network guesses, from that hidden state, the capability of the generator that made the
image, in [0, 1]. It and how far the generator's reinforcement learning is, 0 here as its authors advise for
scoring, scale and shift the hidden state (FiLM) before the head reads it.

Source: HPSv3 (arXiv 2508.03789), HPSv3++ (arXiv 2606.14657) and their published code. As HPSv3's has it,
positions are counted through image and text alike, not by the image's rows and columns as Qwen2-VL's own are:
the weights were trained so; HPSv3++ has Qwen3-VL's own.
Differs: the evaluator of HPSv3++ guesses one capability for all images of a batch. Here every image has its
own, as in that code's calls with one image: a score does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLModel,
    Qwen3VLConfig,
    Qwen3VLModel,
)
from transformers.tokenization_utils_base import AddedToken

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.rewards.vision_language import ImageReader, reading_family, without_marks
from ttsvar_ray.types import Float32Array, Preprocessing, UInt8Array
from ttsvar_ray.vision.batches import settle
from ttsvar_ray.vision.checkpoints import (
    KeyTable,
    build_pretrained,
    from_folder,
    load_strict,
    read_published,
    rename_keys,
)
from ttsvar_ray.vision.published import rounded_sides

INSTRUCTION_FILE = "instruction.txt"
PIXELS = 256 * 28 * 28
"""Of every image, about: its sides become the multiples of 28 that are nearest to this."""

_PROMPT = "{text_prompt}"
_MARK = "<|Reward|>"
_EMBEDDING = "language_model.embed_tokens.weight"
_KEYS: KeyTable = (
    (r"((?:rm_head|cond_encoder|film_gen|cap_encoder)\..+)", r"\1"),
    (r"(?:model\.)?visual\.(.+)", r"visual.\1"),
    (r"model\.language_model\.(.+)", r"language_model.\1"),
    # As transformers had them until 4.51.
    (r"model\.((?:embed_tokens|layers|norm)\..+)", r"language_model.\1"),
    # Nothing is generated.
    (r"lm_head\.weight", None),
)


CONDITION_WIDTH = 256
PROGRESS = 0.0
"""How far the generator's reinforcement learning is, of 1."""


class HpsV3(ImageReader):
    """Scores images by the preference that HPSv3 predicts; one at a time. Higher is better.

    Args:
        folder: with the files above.
        preprocessing: its own, whatever this says; the registry refuses another.
        dtype: of the backbone, published in bfloat16; the head is float32.

    Raises:
        CheckpointError: a file is missing, the weights do not fit, or the instruction cannot be used.
    """

    weights_file = "HPSv3.safetensors"
    family = "Qwen2-VL"
    base = "Qwen2-VL-7B-Instruct"
    config_class: type[PretrainedConfig] = Qwen2VLConfig
    model_class: type[PreTrainedModel] = Qwen2VLModel

    def __init__(
        self, folder: Path, *, name: str, preprocessing: Preprocessing, device: str, dtype: torch.dtype
    ) -> None:
        self.name = name
        self._instruction = _read_instruction(folder / INSTRUCTION_FILE)
        super().__init__(folder, device)
        self._tokenizer.add_tokens([AddedToken(_MARK, special=True, normalized=False)])
        with reading_family(folder):
            config: Any = from_folder(AutoConfig, folder)
        if not isinstance(config, self.config_class):
            raise CheckpointError(
                f"{folder}: expected {self.family}'s config.json, found {config.model_type}'s"
            )
        tokens = config.text_config.vocab_size = len(self._tokenizer)
        source = folder / self.weights_file
        weights = rename_keys(self._read(source), _KEYS, source=str(source))
        if _EMBEDDING in weights and (found := len(weights[_EMBEDDING])) != tokens:
            raise CheckpointError(
                f"{source}: expected one embedding for each of the tokenizer's {tokens} tokens, {_MARK} "
                f"among them, found {found}; take the tokenizer of {self.base}"
            )
        of_backbone = ("visual.", "language_model.")
        judging = {key: weights.pop(key) for key in list(weights) if not key.startswith(of_backbone)}
        judge = self._make_judge(config.text_config.hidden_size)
        load_strict(judge, judging, source=str(source))
        where = torch.device(device)
        model = build_pretrained(self.model_class, config, weights, source=str(source), dtype=dtype)
        self._model = settle(model, where, dtype)
        self._judge: Any = settle(judge, where, torch.float32)

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n] means of the preference; `images` uint8 RGB [n, height, width, 3]."""
        scores = [self._score(image, text) for image, text in zip(images, texts, strict=True)]
        return np.array(scores, np.float32)

    def _score(self, image: UInt8Array, text: str) -> float:
        said = self._instruction.replace(_PROMPT, without_marks(text))
        inputs = self._inputs(self._seen(Image.fromarray(image)), said)
        ids = inputs["input_ids"]
        with torch.inference_mode():
            hidden = self._model(**inputs, **self._places(ids), use_cache=False).last_hidden_state
            return float(self._judged(hidden[ids == self._id(_MARK)])[0, 0])

    def _read(self, source: Path) -> dict[str, Tensor]:
        if not source.is_file():
            raise CheckpointError(f"{source}: no such file; expected the published weights of HPSv3")
        return load_file(source)

    def _make_judge(self, width: int) -> nn.Module:
        """Return what reads a hidden state of this width, under the published names, without weights."""
        return nn.ModuleDict({"rm_head": _rank_head(width)})

    def _seen(self, image: Image.Image) -> Any:
        """Return an image as the backbone sees it."""
        size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
        return self._pixels(images=image, size=size, return_tensors="pt")

    def _places(self, ids: Tensor) -> dict[str, Tensor]:
        """Return what the backbone is told of where tokens [1, tokens] are; nothing: it counts itself."""
        # [3, 1, tokens]: of time, row and column, all the same.
        return {"position_ids": torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)}

    def _judged(self, read: Tensor) -> Tensor:
        """Return [1, 2], mean and spread, of the hidden state [1, width] that is read."""
        judged: Tensor = self._judge["rm_head"](read.float())
        return judged


def _rank_head(width: int) -> nn.Module:
    """Return the head that makes mean and spread of a hidden state."""
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


class HpsV3PlusPlus(HpsV3):
    """Scores images by the preference that HPSv3++ predicts; one at a time. Higher is better.

    Arguments and errors as of `HpsV3`. What guesses the capability has the backbone's dtype, as published.
    """

    weights_file = "hpsv3++.pth"
    family = "Qwen3-VL"
    base = "Qwen3-VL-8B-Instruct"
    config_class = Qwen3VLConfig
    model_class = Qwen3VLModel

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self._judge["cap_encoder"].to(self._model.dtype)

    def _read(self, source: Path) -> dict[str, Tensor]:
        return read_published(source, expected="the published weights of HPSv3++")

    def _make_judge(self, width: int) -> nn.Module:
        condition = CONDITION_WIDTH
        return nn.ModuleDict(
            {
                "rm_head": _rank_head(width),
                "cond_encoder": nn.Sequential(
                    nn.Linear(2, condition), nn.GELU(), nn.Linear(condition, condition)
                ),
                "film_gen": nn.Sequential(
                    nn.Linear(condition, width), nn.ReLU(), nn.Linear(width, 2 * width)
                ),
                "cap_encoder": nn.ModuleDict(
                    {
                        "proj": nn.Linear(width, condition),
                        # What weighs the images of a batch: of one, it is 1.
                        "pool_attn": nn.Linear(condition, 1),
                        "out_proj": nn.Linear(condition, 1),
                    }
                ),
            }
        )

    def _seen(self, image: Image.Image) -> Any:
        # As HPSv3's, by multiples of 28; then by Qwen3-VL's own, of 32.
        high, wide = rounded_sides(image.height, image.width, side=28, fewest=PIXELS, most=PIXELS)
        resized = image.resize((wide, high), Image.Resampling.BICUBIC)
        return self._pixels(images=resized, return_tensors="pt")

    def _places(self, ids: Tensor) -> dict[str, Tensor]:
        return {}

    def _judged(self, read: Tensor) -> Tensor:
        guess = self._judge["cap_encoder"]
        capability = torch.sigmoid(guess["out_proj"](guess["proj"](read))).float()
        condition = torch.cat([capability, torch.full_like(capability, PROGRESS)], dim=-1)
        scale, shift = self._judge["film_gen"](self._judge["cond_encoder"](condition)).chunk(2, dim=-1)
        return super()._judged(read.float() * (1.0 + scale) + shift)
