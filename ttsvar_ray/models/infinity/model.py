"""Infinity behind the engine's seam: text in, bits scale by scale, images out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ttsvar_ray.models.cached_model import CachedModel
from ttsvar_ray.models.infinity.batch_texts import BatchTexts, PackedTexts, TextMemory
from ttsvar_ray.models.infinity.quantizer import Quantizer
from ttsvar_ray.models.infinity.text import Conditioning, TextFeatures, padded_length
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.models.protocol import PACKED_BYTES
from ttsvar_ray.models.sampling import (
    draw_bits,
    guided_logits,
    log_probability_of_bits,
    probability_of_one,
    softened,
)
from ttsvar_ray.models.state import KVCache, ScaleState
from ttsvar_ray.vision.pixels import to_device


class InfinityModel(CachedModel):
    """Draws each bit of a token by itself.

    Args:
        quantizer: the map between bits and feature maps; its schedule is the model's.
        text_encoder: texts to features of the transformer's fixed text length.
        prepare_text: applied to a prompt before it is encoded; nothing else sees the result.
        parts: name, tokenizer and sampling, as in `CachedModel`, and the transformer.
    """

    transformer: InfinityTransformer
    tokenizer: ImageTokenizer

    def __init__(
        self,
        *,
        transformer: InfinityTransformer,
        quantizer: Quantizer,
        text_encoder: TextFeatures,
        prepare_text: Callable[[str], str] = str,
        **parts: Any,
    ) -> None:
        if quantizer.schedule != transformer.scale_schedule:
            raise ValueError(
                "quantizer.schedule: differs from the transformer's; build both from one schedule"
            )
        if quantizer.bits_per_token != transformer.config.bits_per_token:
            raise ValueError(
                f"quantizer: makes {quantizer.bits_per_token} bits a token, "
                f"the transformer expects {transformer.config.bits_per_token}"
            )
        super().__init__(
            transformer=transformer,
            scale_schedule=quantizer.schedule,
            bits_per_token=quantizer.bits_per_token,
            map_size=quantizer.map_size(-1),
            **parts,
        )
        self.quantizer = quantizer
        self.text_encoder = text_encoder
        self.prepare_text = prepare_text
        self._text_memory = TextMemory()

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> tuple[Conditioning, ...]:
        """Encode [prompts] texts once, each for itself; an entry serves all trajectories of its prompt."""
        return tuple(self._encode(text) for text in texts)

    def _encode(self, text: str) -> Conditioning:
        """Encode one text, padded to a length that depends on itself alone."""
        features, lens = self.text_encoder.encode([self.prepare_text(text)])
        if not lens.is_meta:
            features = features[:, : padded_length(int(lens), features.shape[1])]
        return self.transformer.condition(
            features.to(self.device), to_device(lens, self.device), guidance=self.num_streams == 2
        )

    def free_memory(self) -> None:
        """Let go of packed texts as well."""
        super().free_memory()
        self._text_memory = TextMemory()

    def cuts_text(self, text: str) -> bool:
        """Whether a prompt has more tokens than the transformer was trained to read."""
        return self.text_encoder.cuts(self.prepare_text(text))

    def run_scale(self, state: ScaleState, streams: range) -> tuple[Tensor, KVCache]:
        """Return raw logits float32 [S, B, n, 2 * D] and the extended cache."""
        scale_index = state.scale_index
        features = None if scale_index == 0 else self.quantizer.next_input(state.summed, scale_index)
        return self.transformer.scale_step(
            features,
            scale_index,
            state.cache,
            self._texts(state, streams),
            capacity=self.cache_capacity(scale_index),
            recorded=self.recorded,
        )

    def mixed(self, raw: Tensor, scale_index: int, guidance: float) -> Tensor:
        """Return logits float32 [B, n, D, 2]."""
        logits = guided_logits(raw, temperature=self.sampling.temperature[scale_index], guidance=guidance)
        target = self.sampling.confidence[scale_index] if self.sampling.confidence else None
        return logits if target is None else softened(logits, target)

    def _texts(self, state: ScaleState, streams: range) -> BatchTexts | PackedTexts:
        """Return what some streams of a state's trajectories need of their texts at the next scale."""
        longest = self.transformer.config.text_max_length if self.execution.fixed_shapes else None
        packs = self.device.type == "cuda" or self.recorded is not None
        if (
            longest is not None
            and len(streams) * state.num_rows * self._text_row_bytes(longest) > PACKED_BYTES
        ):
            packs = False
        if packs:
            return self._text_memory.packed(state.texts, state.text_rows, streams=streams, length=longest)
        return BatchTexts(state.texts, state.text_rows, streams=streams, length=longest)

    def _text_row_bytes(self, length: int) -> int:
        """Return the bytes of the keys and values of all layers for one text of a length."""
        config = self.transformer.config
        return 2 * config.depth * config.embed_dim * length * self.block_dtype.itemsize

    def draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Return bits uint8 [B, n, D], each drawn by a number of its own."""
        probability = probability_of_one(logits, top_p=self.sampling.top_p)
        return draw_bits(probability, uniforms.view_as(probability))

    def log_probability(self, logits: Tensor, bits: Tensor) -> Tensor:
        """Return float64 [B, n, D], of each bit."""
        return log_probability_of_bits(logits, bits)

    def accumulate(self, summed: Tensor, bits: Tensor, scale_index: int) -> Tensor:
        """Return the feature map with one more scale."""
        return self.quantizer.accumulate(summed, bits, scale_index)

    def check_given(self, bits: Tensor, scale_index: int) -> None:
        """Accept all: any bits are a code."""
