"""Infinity behind the engine's seam: text in, bits scale by scale, images out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ttsvar_ray.models.decode_chunks import decode_in_chunks
from ttsvar_ray.models.infinity.decode_sizes import decode_rows, selector_map_size
from ttsvar_ray.models.infinity.quantizer import Quantizer
from ttsvar_ray.models.infinity.state import EncodedText, InfinityState
from ttsvar_ray.models.infinity.text_encoder import TextFeatures
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer, to_uint8
from ttsvar_ray.models.infinity.transformer import InfinityTransformer
from ttsvar_ray.models.kv_cache import KVCache
from ttsvar_ray.models.row_stability import channels_first, pad_images
from ttsvar_ray.models.sampling import SamplingSettings, draw_bits, guided_logits, probability_of_one
from ttsvar_ray.types import Float32Array, UInt8Array

ChooseBits = Callable[[Tensor], Tensor]
"""From logits float32 [B, n, D, 2] (temperature and guidance applied) to bits uint8 [B, n, D]."""


def _given(bits: Tensor, _logits: Tensor) -> Tensor:
    return bits


class InfinityModel:
    """Implements `NextScaleModel`.

    Rows are independent: on a CPU a trajectory's bits and pixels are the same bytes in any batch.

    Args:
        name: written to the output rows.
        transformer, tokenizer: in evaluation mode, on one device.
        quantizer: the map between bits and feature maps; its schedule is the model's.
        text_encoder: texts to features of the transformer's fixed text length.
        sampling: how bits are drawn.
        prepare_text: applied to a prompt before it is encoded; nothing else sees the result.
    """

    def __init__(
        self,
        *,
        name: str,
        transformer: InfinityTransformer,
        tokenizer: ImageTokenizer,
        quantizer: Quantizer,
        text_encoder: TextFeatures,
        sampling: SamplingSettings,
        prepare_text: Callable[[str], str] = str,
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
        if len(sampling.guidance) != len(quantizer.schedule):
            raise ValueError(
                f"sampling: settings for {len(sampling.guidance)} scales, "
                f"the model has {len(quantizer.schedule)}"
            )
        self.name = name
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.quantizer = quantizer
        self.text_encoder = text_encoder
        self.sampling = sampling
        self.prepare_text = prepare_text
        self.scale_schedule = quantizer.schedule
        self.bits_per_token = quantizer.bits_per_token
        map_height, map_width = quantizer.map_size(-1)
        self.image_height = map_height * tokenizer.config.patch_size
        self.image_width = map_width * tokenizer.config.patch_size

    @property
    def num_scales(self) -> int:
        return len(self.scale_schedule)

    @property
    def device(self) -> torch.device:
        return self.transformer.pos_start.device

    @property
    def block_dtype(self) -> torch.dtype:
        """The dtype of the blocks, and so of the KV cache."""
        return self.transformer.blocks[0].sa.proj.weight.dtype

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> EncodedText:
        """Encode [prompts] texts once; each entry serves all trajectories of its prompt."""
        if not texts:
            return ()
        features, lens = self.text_encoder.encode([self.prepare_text(text) for text in texts])
        both = self.transformer.condition(
            features.to(self.device), lens.to(self.device), guidance=self.sampling.uses_guidance
        )
        order = torch.arange(len(texts), device=self.device)
        return tuple(both.gather(order[index : index + 1]) for index in range(len(texts)))

    @torch.inference_mode()
    def start(self, text: EncodedText, text_rows: Sequence[int]) -> InfinityState:
        """Return a state before scale 0 with one trajectory per entry of `text_rows`."""
        used = dict.fromkeys(text_rows)
        place = {row: position for position, row in enumerate(used)}
        return InfinityState(
            texts=tuple(text[row] for row in used),
            text_rows=tuple(place[row] for row in text_rows),
            summed=self.quantizer.empty_map(len(text_rows), self.device),
            cache=KVCache(),
        )

    def advance(self, state: InfinityState, uniforms: Float32Array) -> InfinityState:
        """Run the next scale and draw its bits; uniforms float32 [rows, n * bits_per_token]."""
        height, width = self._next_size(state)
        expected = (state.num_rows, height * width * self.bits_per_token)
        if uniforms.shape != expected:
            raise ValueError(
                f"uniforms: expected {expected} at scale {state.scale_index}, got {uniforms.shape}"
            )
        limits = torch.from_numpy(np.ascontiguousarray(uniforms)).to(self.device)

        def draw(logits: Tensor) -> Tensor:
            probability = probability_of_one(logits, top_p=self.sampling.top_p)
            return draw_bits(probability, limits.view_as(probability))

        return self.advance_with(state, draw)

    @torch.inference_mode()
    def advance_with(self, state: InfinityState, choose: ChooseBits) -> InfinityState:
        """Run the next scale and let `choose` turn its logits into bits."""
        scale_index = state.scale_index
        height, width = self._next_size(state)
        features = None if scale_index == 0 else self.quantizer.next_input(state.summed, scale_index)
        raw, cache = self.transformer.scale_step(
            features, scale_index, state.cache, state.texts, torch.tensor(state.text_rows, device=self.device)
        )
        logits = guided_logits(
            raw,
            temperature=self.sampling.temperature[scale_index],
            guidance=self.sampling.guidance[scale_index],
        )
        bits = choose(logits)
        assert bits.shape == (state.num_rows, height * width, self.bits_per_token), bits.shape
        return self._extend(state, bits, cache)

    def _extend(self, state: InfinityState, bits: Tensor, cache: KVCache) -> InfinityState:
        return InfinityState(
            texts=state.texts,
            text_rows=state.text_rows,
            summed=self.quantizer.accumulate(state.summed, bits, state.scale_index),
            cache=cache,
            bits=(*state.bits, bits),
        )

    @torch.inference_mode()
    def replay(self, state: InfinityState, bits: Sequence[np.ndarray]) -> InfinityState:
        """Run further scales with given bits, uint8 [rows, n, bits_per_token] each.

        Scale by scale through the same kernels as `advance`, so that the result is the same bytes.
        """
        for scale_bits in bits:
            height, width = self._next_size(state)
            expected = (state.num_rows, height * width, self.bits_per_token)
            if scale_bits.shape != expected:
                raise ValueError(
                    f"bits: expected {expected} at scale {state.scale_index}, got {scale_bits.shape}"
                )
            given = torch.from_numpy(np.array(scale_bits, dtype=np.uint8)).to(self.device)
            if state.scale_index == self.num_scales - 1:
                # Nothing reads the last scale's keys: its bits alone complete the feature map.
                state = self._extend(state, given, state.cache)
            else:
                state = self.advance_with(state, functools.partial(_given, given))
        return state

    @torch.inference_mode()
    def gather(self, state: InfinityState, rows: Sequence[int]) -> InfinityState:
        """Select and repeat trajectories."""
        return state.gather(rows)

    @torch.inference_mode()
    def concatenate(self, states: Sequence[InfinityState]) -> InfinityState:
        """Stack the trajectories of states before the same scale."""
        return InfinityState.concatenate(states)

    def scale_index(self, state: InfinityState) -> int:
        """Return the number of finished scales."""
        return state.scale_index

    def bits(self, state: InfinityState) -> tuple[np.ndarray, ...]:
        """Return the bits of the finished scales, each uint8 [rows, n, bits_per_token]."""
        return tuple(scale.cpu().numpy() for scale in state.bits)

    def decode(self, state: InfinityState, *, size: str = "full") -> UInt8Array:
        """Decode the feature map so far to uint8 RGB [rows, height, width, 3]."""
        patch = self.tokenizer.config.patch_size
        height, width = self._decoded_size(state.summed, size)
        step = decode_rows(height * patch, width * patch)
        return decode_in_chunks(
            state.summed, lambda maps: to_uint8(self.decode_float(maps, size=size)), step=step
        )

    @torch.inference_mode()
    def decode_float(self, summed: Tensor, *, size: str = "full") -> Tensor:
        """Decode feature maps [B, d, H, W] to images [B, 3, height, width] in [-1, 1]."""
        reduced = pad_images(self._selector_map(summed) if size == "selector" else summed)
        narrow = self.device.type != "cpu" and self.block_dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.block_dtype, enabled=narrow):
            return self.tokenizer.decode(reduced)[: summed.shape[0]]

    def kv_bytes(self, scale_index: int) -> int:
        """Bytes of KV cache of one trajectory after `scale_index`; the last scale's are never kept."""
        kept = self.scale_schedule[: min(scale_index + 1, self.num_scales - 1)]
        config = self.transformer.config
        streams = 2 if self.sampling.uses_guidance else 1
        per_token = 2 * config.depth * config.embed_dim * self.block_dtype.itemsize
        return sum(height * width for height, width in kept) * per_token * streams

    def _next_size(self, state: InfinityState) -> tuple[int, int]:
        if state.scale_index >= self.num_scales:
            raise ValueError(f"state: all {self.num_scales} scales are finished; decode it")
        return self.scale_schedule[state.scale_index]

    def _decoded_size(self, summed: Tensor, size: str) -> tuple[int, int]:
        height, width = summed.shape[-2:]
        if size == "selector":
            return selector_map_size(height, width, self.tokenizer.config.patch_size)
        return height, width

    def _selector_map(self, summed: Tensor) -> Tensor:
        reduced = self._decoded_size(summed, "selector")
        if reduced == tuple(summed.shape[-2:]):
            return summed
        # By area: the map is a sum of fine codes, and skipping cells would alias them.
        return F.interpolate(channels_first(summed), size=reduced, mode="area")
