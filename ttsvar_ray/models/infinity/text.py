"""The text side of Infinity: a T5 encoder through transformers, and what the transformer knows of a text.

The latter is computed once per prompt and shared by its trajectories. Here is also the published addition to
prompts about people.

Legend: S streams (1, or 2 with guidance: conditional, unconditional), P texts, C width, H heads, T padded
text length, D head width, B trajectories.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.models.row_stability import min_linear_rows
from ttsvar_ray.vision.checkpoints import from_folder
from ttsvar_ray.vision.pixels import to_device

PEOPLE_WORDS = (
    *("man", "woman", "men", "women", "boy", "girl", "child", "person", "human", "adult", "teenager"),
    *("employee", "employer", "worker", "mother", "father", "sister", "brother"),
    *("grandmother", "grandfather", "son", "daughter"),
)
"""Looked for anywhere in a prompt, as published: "a German season" has two of them."""

ADDITION = ". very smooth faces, good looking faces, face to the camera, perfect facial features"


def with_positive_prompt(prompt: str) -> str:
    """Return a prompt with the published addition if it speaks of people, by any of `PEOPLE_WORDS`."""
    return prompt + ADDITION if any(word in prompt for word in PEOPLE_WORDS) else prompt


TEXT_STEP = 16
"""Texts are padded to a multiple of it, so that there are few lengths, and a prompt of 28 tokens is not
computed as one of 512."""


_LAYER = re.compile(r"encoder\.block\.(\d+)\.")


def padded_length(tokens: int, longest: int) -> int:
    """Return the length that a text of so many tokens is padded to, at most `longest`."""
    return min(-(-tokens // TEXT_STEP) * TEXT_STEP, longest)


def _check_layers(path: Path) -> None:
    """Refuse a config.json that would have other layers built than the weights have: many take for ever."""
    index, file = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.is_file():
        names = json.loads(index.read_bytes())["weight_map"].keys()
    elif file.is_file():
        with safe_open(file, framework="pt") as weights:
            names = weights.keys()
    else:
        return
    found = {match[1] for name in names if (match := _LAYER.match(name))}
    said = json.loads((path / "config.json").read_bytes())
    layers = said.get("num_layers") if isinstance(said, dict) else None
    if layers is not None and layers != len(found):
        raise CheckpointError(
            f"{path}: config.json says num_layers {str(layers)[:20]}, the weights have {len(found)}"
        )


class TextFeatures(Protocol):
    """Turns texts into features of one padded length, at most the transformer's."""

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return float32 [P, T, channels] and the number of real tokens, int64 [P]."""
        ...

    def cuts(self, text: str) -> bool:
        """Whether a text has more tokens than are read."""
        ...


class T5TextEncoder:
    """Encodes prompts as Infinity expects: no template, cut to a fixed number of tokens.

    A text's features do not depend on the other texts of a call: each is encoded at its own length.

    Args:
        model: a transformers `T5EncoderModel` in evaluation mode.
        tokenizer: its tokenizer; must close every text with an end token.
        max_length: tokens to cut to.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length

    @classmethod
    def load(cls, path: Path, *, max_length: int, device: torch.device, dtype: torch.dtype) -> T5TextEncoder:
        """Load `path` (config.json, model.safetensors, tokenizer files); never reaches for the network.

        Raises:
            CheckpointError: the directory is absent or incomplete.
        """
        from transformers import AutoTokenizer, T5EncoderModel

        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{path}: expected a T5 encoder directory with config.json, model.safetensors and a tokenizer"
            )
        _check_layers(path)
        tokenizer = from_folder(AutoTokenizer, path)
        model, report = from_folder(
            T5EncoderModel,
            path,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            # Each tensor goes straight to where it stays (accelerate), not by way of a copy in host memory.
            device_map={"": device},
        )
        if missing := sorted(report["missing_keys"]):
            raise CheckpointError(f"{path}: weights lack {len(missing)} keys, first {missing[:3]}")
        return cls(model.eval(), tokenizer, max_length)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = [self._encode(text) for text in texts]
        longest = max(len(features) for features, _ in encoded)
        features = [F.pad(features, (0, 0, 0, longest - len(features))) for features, _ in encoded]
        return torch.stack(features), torch.tensor([tokens for _, tokens in encoded])

    def _encode(self, text: str) -> tuple[Tensor, int]:
        """Return float32 [T, channels] of one text, and its real tokens."""
        ids = self.tokenizer(text, max_length=self.max_length, truncation=True)["input_ids"]
        tokens, device = len(ids), self.model.device
        if tokens < 1:
            raise CheckpointError(
                f"tokenizer: no token at all for {text!r}; expected at least an end token per text"
            )
        length = padded_length(tokens, self.max_length)
        # The encoder's linears are not ours to make row-stable: on a CPU give them enough rows instead.
        rows = math.ceil(min_linear_rows() / length) if device.type == "cpu" else 1
        padded = torch.full((rows, length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(padded)
        padded[0, :tokens] = torch.tensor(ids)
        mask[:, :tokens] = 1
        output = self.model(input_ids=to_device(padded, device), attention_mask=to_device(mask, device))
        return output.last_hidden_state[0].float(), tokens

    def cuts(self, text: str) -> bool:
        return len(self.tokenizer(text, verbose=False)["input_ids"]) > self.max_length


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The text side of a forward pass.

    Attributes:
        pooled: float32 [S, P, C], first token and source of all modulations.
        block_modulation: float32 [S, P, 6, C], added to each block's own.
        head_modulation: float32 [S, P, 2, C], scale and shift before the head.
        text_mask: bool [P, T], true for real tokens; both streams share it.
        keys, values: per layer [S, P, H, T, D] for cross-attention.
    """

    pooled: Tensor
    block_modulation: Tensor
    head_modulation: Tensor
    text_mask: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def num_streams(self) -> int:
        return self.pooled.shape[0]

    @property
    def nbytes(self) -> int:
        tensors = (self.pooled, self.block_modulation, self.head_modulation, *self.keys, *self.values)
        return sum(t.numel() * t.element_size() for t in tensors)

    def of_streams(self, streams: range) -> Conditioning:
        """Return some neighbouring streams; nothing is copied."""
        own = slice(streams.start, streams.stop)
        return Conditioning(
            pooled=self.pooled[own],
            block_modulation=self.block_modulation[own],
            head_modulation=self.head_modulation[own],
            text_mask=self.text_mask,
            keys=tuple(keys[own] for keys in self.keys),
            values=tuple(values[own] for values in self.values),
        )
