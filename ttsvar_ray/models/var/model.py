"""VAR behind the engine's seam: a class in, tokens scale by scale, images out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttsvar_ray.models.cached_model import CachedModel
from ttsvar_ray.models.sampling import SamplingSettings, draw_token_bits, restricted_probabilities
from ttsvar_ray.models.state import KVCache, ScaleState
from ttsvar_ray.models.var.classes import ClassNames
from ttsvar_ray.models.var.tokenizer import VqDecoder, bits_to_tokens, next_input
from ttsvar_ray.models.var.transformer import VarTransformer


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
        labels = torch.tensor([state.texts[row] for row in state.text_rows], device=self.device)
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
