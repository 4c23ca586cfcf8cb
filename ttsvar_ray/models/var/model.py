"""VAR behind the engine's seam: a class by its name in, tokens scale by scale, images out."""

from __future__ import annotations

import difflib
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ttsvar_ray.errors import CheckpointError, InputError
from ttsvar_ray.models.cached_model import CachedModel
from ttsvar_ray.models.sampling import SamplingSettings, draw_token_bits, restricted_probabilities
from ttsvar_ray.models.state import KVCache, ScaleState
from ttsvar_ray.models.var.tokenizer import VqDecoder, bits_to_tokens, next_input
from ttsvar_ray.models.var.transformer import VarTransformer
from ttsvar_ray.vision.pixels import to_device

SUGGESTIONS = 3


def _normal(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


class ClassNames:
    """The names of a class-conditional model's classes, each with its synonyms.

    A prompt is a class's name, or its number. Names are compared without regard to case, underscores and
    runs of blanks. A name that several classes have is refused with their numbers.
    """

    def __init__(self, names: Sequence[Sequence[str]]) -> None:
        self._names = tuple(tuple(own) for own in names)
        self._labels: dict[str, list[int]] = {}
        for label, own in enumerate(self._names):
            for name in dict.fromkeys(_normal(name) for name in own):
                self._labels.setdefault(name, []).append(label)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, label: int) -> str:
        """Return the first name of a class."""
        return self._names[label][0]

    def label(self, prompt: str) -> int:
        """Return the class that a prompt names.

        Raises:
            InputError: no class, or more than one.
        """
        text = _normal(prompt)
        if text.isdecimal():
            if int(text) < len(self):
                return int(text)
            raise InputError(
                f"prompt {prompt!r}: expected a class number from 0 to {len(self) - 1}, got {text}"
            )
        labels = self._labels.get(text, [])
        if len(labels) == 1:
            return labels[0]
        if labels:
            choices = ", ".join(f"{label} ({', '.join(self._names[label])})" for label in labels)
            raise InputError(f"prompt {prompt!r}: names {len(labels)} classes; give a number: {choices}")
        near = difflib.get_close_matches(text, self._labels, n=SUGGESTIONS)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise InputError(
            f"prompt {prompt!r}: expected the name or the number of one of {len(self)} classes, got neither"
            f"{hint}"
        )

    @classmethod
    def read(cls, path: Path) -> ClassNames:
        """Read a JSON list with one list of names per class.

        Raises:
            CheckpointError: not such a file.
        """
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: no readable list of class names: {error}") from error
        fits = isinstance(names, list) and all(
            isinstance(own, list) and own and all(isinstance(name, str) for name in own) for own in names
        )
        if not fits:
            raise CheckpointError(f"{path}: expected a list with a list of names for each class")
        return cls(names)

    def write(self, path: Path) -> None:
        """Write the file that `read` reads."""
        path.write_text(json.dumps([list(own) for own in self._names], indent=0) + "\n", encoding="utf-8")


def imagenet_classes() -> ClassNames:
    """Return the 1,000 ImageNet classes in the order of the published checkpoints, with WordNet's names."""
    package = importlib.resources.files("ttsvar_ray.models.var")
    return ClassNames.read(Path(str(package)) / "imagenet_classes.json")


class VarModel(CachedModel):
    """Draws entries of a codebook, bit by bit, for a class.

    Args:
        name: written to the output rows.
        transformer, tokenizer: in evaluation mode, on one device.
        classes: what prompts mean.
    """

    transformer: VarTransformer
    tokenizer: VqDecoder

    def __init__(
        self,
        *,
        name: str,
        transformer: VarTransformer,
        tokenizer: VqDecoder,
        classes: ClassNames,
        sampling: SamplingSettings,
    ) -> None:
        config = transformer.config
        for part, ours, theirs in (
            ("vocabulary", config.vocabulary, tokenizer.config.vocabulary),
            ("codebook_dim", config.codebook_dim, tokenizer.config.codebook_dim),
        ):
            if ours != theirs:
                raise ValueError(f"{part}: the transformer has {ours}, the tokenizer {theirs}")
        if len(classes) != config.num_classes:
            raise ValueError(f"classes: expected {config.num_classes} as the transformer, got {len(classes)}")
        super().__init__(
            name=name,
            transformer=transformer,
            tokenizer=tokenizer,
            sampling=sampling,
            scale_schedule=transformer.scale_schedule,
            bits_per_token=config.bits_per_token,
            map_size=transformer.scale_schedule[-1],
        )
        self.classes = classes

    def encode_text(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Return the class of each prompt.

        Raises:
            InputError: a prompt that names no class, or several.
        """
        return tuple(self.classes.label(text) for text in texts)

    def run_scale(self, state: ScaleState, streams: range) -> tuple[Tensor, KVCache]:
        """Return raw logits float32 [S, B, n, V] and the extended cache."""
        scale_index = state.scale_index
        features = None
        if scale_index > 0:
            features = next_input(state.summed, self.scale_schedule[scale_index])
        labels = to_device(torch.tensor([state.texts[row] for row in state.text_rows]), self.device)
        return self.transformer.scale_step(
            features,
            scale_index,
            state.cache,
            self.transformer.condition(labels, streams=streams),
            streams=len(streams),
            capacity=self.cache_capacity(scale_index),
            recorded=self.recorded,
        )

    def mixed(self, raw: Tensor, scale_index: int, guidance: float) -> Tensor:
        """Return logits float32 [B, n, V]."""
        logits = raw[0]
        if guidance != 1:
            logits = guidance * raw[0] + (1 - guidance) * raw[1]
        return logits / self.sampling.temperature[scale_index]

    def draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Return the bits uint8 [B, n, D] of drawn entries."""
        probabilities = restricted_probabilities(logits, top_k=self.sampling.top_k, top_p=self.sampling.top_p)
        return draw_token_bits(probabilities, uniforms.view(*logits.shape[:2], self.bits_per_token))

    def log_probability(self, logits: Tensor, bits: Tensor) -> Tensor:
        """Return float64 [B, n], of each entry of the codebook."""
        chosen = bits_to_tokens(bits)[..., None]
        return logits.double().log_softmax(dim=-1).gather(-1, chosen)[..., 0]

    def accumulate(self, summed: Tensor, bits: Tensor, scale_index: int) -> Tensor:
        """Return the feature map with one more scale."""
        tokens = bits_to_tokens(bits)
        return self.tokenizer.quantize.accumulate(summed, tokens, scale_index, self.scale_schedule)

    def check_given(self, bits: Tensor, scale_index: int) -> None:
        """Raise `ValueError` for bits that name no entry of the codebook."""
        vocabulary, largest = self.transformer.config.vocabulary, int(bits_to_tokens(bits).max())
        if largest >= vocabulary:
            raise ValueError(
                f"bits: expected entries below {vocabulary} at scale {scale_index}, got {largest}"
            )
