"""The text encoder: a T5 encoder from a local directory, through transformers; and the published addition
to prompts about people."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
