"""The text side of Infinity: a T5 encoder through transformers, and what the transformer knows of a text.

The latter is computed once per prompt and shared by its trajectories. Here is also the published addition to
prompts about people.

Legend: S streams (1, or 2 with guidance: conditional, unconditional), P texts, C width, H heads, T padded
text length, D head width, B trajectories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.models.row_stability import min_linear_rows

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


class TextFeatures(Protocol):
    """Turns texts into features of one fixed padded length."""

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return float32 [P, T, channels] and the number of real tokens, int64 [P]."""
        ...

    def cuts(self, text: str) -> bool:
        """Whether a text has more tokens than are read."""
        ...


class T5TextEncoder:
    """Encodes prompts as Infinity expects: no template, cut and padded to a fixed number of tokens.

    The padded length never depends on the other texts of a batch, so neither do the features.

    Args:
        model: a transformers `T5EncoderModel` in evaluation mode.
        tokenizer: its tokenizer; must close every text with an end token.
        max_length: tokens to cut and pad to.
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
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        model, report = T5EncoderModel.from_pretrained(
            path,
            local_files_only=True,
            trust_remote_code=False,
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
        device = self.model.device
        padded = list(texts)
        if device.type == "cpu":
            # The encoder's linears are not ours to make row-stable: give them enough rows instead.
            padded += [""] * (math.ceil(min_linear_rows() / self.max_length) - len(padded))
        batch = self.tokenizer(
            padded,
            max_length=self.max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        mask = batch["attention_mask"].to(device)
        lens = mask.sum(dim=1)[: len(texts)]
        if int(lens.min()) < 1:
            empty = [text for text, length in zip(texts, lens.tolist(), strict=True) if length < 1]
            raise CheckpointError(
                f"tokenizer: no token at all for {empty[0]!r}; expected at least an end token per text"
            )
        output = self.model(input_ids=batch["input_ids"].to(device), attention_mask=mask)
        return output.last_hidden_state[: len(texts)].float(), lens

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

    def gather(self, texts: Tensor) -> Conditioning:
        """Select texts; `texts` is int64 [P'] on the conditioning's device."""
        return Conditioning(
            pooled=self.pooled.index_select(1, texts),
            block_modulation=self.block_modulation.index_select(1, texts),
            head_modulation=self.head_modulation.index_select(1, texts),
            text_mask=self.text_mask.index_select(0, texts),
            keys=tuple(k.index_select(1, texts) for k in self.keys),
            values=tuple(v.index_select(1, texts) for v in self.values),
        )


def rows_of(parts: Sequence[Tensor], text_rows: Tensor | None) -> Tensor:
    """Spread texts [S, P_i, ...] of some parts over trajectories: [S * B, ...].

    Args:
        parts: the texts of all parts are counted through.
        text_rows: int64 [B], the text of each trajectory; None means that trajectory b has text b.
    """
    per_text = parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
    if text_rows is not None:
        per_text = per_text.index_select(1, text_rows)
    return per_text.flatten(0, 1)
