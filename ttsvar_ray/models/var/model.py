"""VAR behind the engine's seam: a class in, tokens scale by scale, images out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ttsvar_ray.models.decode_chunks import decode_in_chunks
from ttsvar_ray.models.kv_cache import KVCache
from ttsvar_ray.models.row_stability import channels_first
from ttsvar_ray.models.sampling import SamplingSettings
from ttsvar_ray.models.var.classes import ClassNames
from ttsvar_ray.models.var.sampling import draw_token_bits, restricted_probabilities
from ttsvar_ray.models.var.state import EncodedClasses, VarState
from ttsvar_ray.models.var.tokenizer import VqDecoder, bits_to_tokens, next_input, tokens_to_bits
from ttsvar_ray.models.var.transformer import VarTransformer
from ttsvar_ray.types import Float32Array, UInt8Array

SELECTOR_PIXELS = 256
"""Longer side of an image decoded for selectors: they look at 224 pixels anyway."""

DECODE_ROWS = 8
"""Images decoded at once: bounds the decoder's memory, and is below what `pad_images` promises."""

ChooseTokens = Callable[[Tensor], Tensor]
"""From logits float32 [B, n, V] (temperature and guidance applied) to bits uint8 [B, n, D]."""


class VarModel:
    """Implements `NextScaleModel` for class-conditional, vector-quantised models.

    Rows are independent: on a CPU a trajectory's tokens and pixels are the same bytes in any batch.

    Args:
        name: written to the output rows.
        transformer, tokenizer: in evaluation mode, on one device.
        classes: what prompts mean.
        sampling: how tokens are drawn.
    """

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
        if len(sampling.guidance) != len(transformer.scale_schedule):
            raise ValueError(
                f"sampling: settings for {len(sampling.guidance)} scales, "
                f"the model has {len(transformer.scale_schedule)}"
            )
        self.name = name
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.classes = classes
        self.sampling = sampling
        self.scale_schedule = transformer.scale_schedule
        self.bits_per_token = config.bits_per_token
        self.image_height = self.scale_schedule[-1][0] * tokenizer.config.patch_size
        self.image_width = self.scale_schedule[-1][1] * tokenizer.config.patch_size

    @property
    def num_scales(self) -> int:
        return len(self.scale_schedule)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.transformer.pos_start.device

    @property
    def block_dtype(self) -> torch.dtype:
        """The dtype of the blocks, and so of the KV cache."""
        return self.transformer.block_dtype

    def encode_text(self, texts: Sequence[str]) -> EncodedClasses:
        """Return the class of each prompt.

        Raises:
            InputError: a prompt that names no class, or several.
        """
        return tuple(self.classes.label(text) for text in texts)

    @torch.inference_mode()
    def start(self, text: EncodedClasses, text_rows: Sequence[int]) -> VarState:
        """Return a state before scale 0 with one trajectory per entry of `text_rows`."""
        size = (len(text_rows), self.tokenizer.config.codebook_dim, *self.scale_schedule[-1])
        return VarState(
            labels=tuple(text[row] for row in text_rows),
            summed=torch.zeros(size, device=self.device),
            cache=KVCache(),
        )

    def advance(self, state: VarState, uniforms: Float32Array) -> VarState:
        """Run the next scale and draw its tokens; uniforms float32 [rows, n * bits_per_token]."""
        expected = (state.num_rows, self._tokens(state) * self.bits_per_token)
        if uniforms.shape != expected:
            raise ValueError(
                f"uniforms: expected {expected} at scale {state.scale_index}, got {uniforms.shape}"
            )
        limits = torch.from_numpy(np.ascontiguousarray(uniforms)).to(self.device)

        def draw(logits: Tensor) -> Tensor:
            probabilities = restricted_probabilities(
                logits, top_k=self.sampling.top_k, top_p=self.sampling.top_p
            )
            return draw_token_bits(probabilities, limits.view(*logits.shape[:2], self.bits_per_token))

        return self.advance_with(state, draw)

    @torch.inference_mode()
    def advance_with(self, state: VarState, choose: ChooseTokens) -> VarState:
        """Run the next scale and let `choose` turn its logits into bits."""
        scale_index = state.scale_index
        tokens = self._tokens(state)
        features = None
        if scale_index > 0:
            features = next_input(state.summed, self.scale_schedule[scale_index])
        labels = torch.tensor(state.labels, dtype=torch.int64, device=self.device)
        guided = self.sampling.uses_guidance
        raw, cache = self.transformer.scale_step(
            features,
            scale_index,
            state.cache,
            self.transformer.condition(labels, guidance=guided),
            streams=2 if guided else 1,
        )
        logits = raw[0]
        guidance = self.sampling.guidance[scale_index]
        if guidance != 1:
            logits = guidance * raw[0] + (1 - guidance) * raw[1]
        bits = choose(logits / self.sampling.temperature[scale_index])
        assert bits.shape == (state.num_rows, tokens, self.bits_per_token), bits.shape
        return self._extend(state, bits, cache)

    def _extend(self, state: VarState, bits: Tensor, cache: KVCache) -> VarState:
        return VarState(
            labels=state.labels,
            summed=self.tokenizer.quantize.accumulate(
                state.summed, bits_to_tokens(bits), state.scale_index, self.scale_schedule
            ),
            cache=cache,
            bits=(*state.bits, bits),
        )

    @torch.inference_mode()
    def replay(self, state: VarState, bits: Sequence[np.ndarray]) -> VarState:
        """Run further scales with given bits, uint8 [rows, n, bits_per_token] each.

        Raises:
            ValueError: another shape, or bits that name no entry of the codebook.
        """
        for scale_bits in bits:
            scale_index = state.scale_index
            expected = (state.num_rows, self._tokens(state), self.bits_per_token)
            if scale_bits.shape != expected:
                raise ValueError(f"bits: expected {expected} at scale {scale_index}, got {scale_bits.shape}")
            given = torch.from_numpy(np.array(scale_bits, dtype=np.uint8)).to(self.device)
            largest = int(bits_to_tokens(given).max())
            if largest >= self.transformer.config.vocabulary:
                raise ValueError(
                    f"bits: expected entries below {self.transformer.config.vocabulary} at scale "
                    f"{scale_index}, got {largest}"
                )
            if scale_index == self.num_scales - 1:
                # Nothing reads the last scale's keys: its bits alone complete the feature map.
                state = self._extend(state, given, state.cache)
            else:
                state = self.advance_with(state, lambda _logits, chosen=given: chosen)  # type: ignore[misc]
        return state

    @torch.inference_mode()
    def gather(self, state: VarState, rows: Sequence[int]) -> VarState:
        """Select and repeat trajectories."""
        return state.gather(rows)

    @torch.inference_mode()
    def concatenate(self, states: Sequence[VarState]) -> VarState:
        """Stack the trajectories of states before the same scale."""
        return VarState.concatenate(states)

    def scale_index(self, state: VarState) -> int:
        """Return the number of finished scales."""
        return state.scale_index

    def bits(self, state: VarState) -> tuple[np.ndarray, ...]:
        """Return the bits of the finished scales, each uint8 [rows, n, bits_per_token]."""
        return tuple(scale.cpu().numpy() for scale in state.bits)

    def token_bits(self, tokens: Tensor) -> Tensor:
        """Return the bits uint8 [B, n, bits_per_token] that name entries int64 [B, n]."""
        return tokens_to_bits(tokens, self.bits_per_token)

    def decode(self, state: VarState, *, size: str = "full") -> UInt8Array:
        """Decode the feature map so far to uint8 RGB [rows, height, width, 3]."""
        return decode_in_chunks(
            state.summed, lambda maps: to_uint8(self.decode_float(maps, size=size)), step=DECODE_ROWS
        )

    @torch.inference_mode()
    def decode_float(self, summed: Tensor, *, size: str = "full") -> Tensor:
        """Decode feature maps [B, d, H, W] to images [B, 3, height, width] in [-1, 1]."""
        patch = self.tokenizer.config.patch_size
        largest, longer = max(SELECTOR_PIXELS // patch, 1), max(summed.shape[-2:])
        if size == "selector" and longer > largest:
            factor = largest / longer
            reduced = tuple(max(round(side * factor), 1) for side in summed.shape[-2:])
            summed = F.interpolate(channels_first(summed), size=reduced, mode="area")
        narrow = self.device.type != "cpu" and self.block_dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.block_dtype, enabled=narrow):
            return self.tokenizer.decode(summed)

    def kv_bytes(self, scale_index: int) -> int:
        """Bytes of KV cache of one trajectory after `scale_index`; the last scale's are never kept."""
        tokens = self.transformer.starts[min(scale_index + 1, self.num_scales - 1)]
        config = self.transformer.config
        streams = 2 if self.sampling.uses_guidance else 1
        return tokens * 2 * config.depth * config.embed_dim * self.block_dtype.itemsize * streams

    def _tokens(self, state: VarState) -> int:
        if state.scale_index >= self.num_scales:
            raise ValueError(f"state: all {self.num_scales} scales are finished; decode it")
        height, width = self.scale_schedule[state.scale_index]
        return height * width


def to_uint8(image: Tensor) -> Tensor:
    """Turn [B, 3, H, W] in [-1, 1] into uint8 RGB [B, H, W, 3]; truncates, as published."""
    return ((image.float() + 1) * 0.5 * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
