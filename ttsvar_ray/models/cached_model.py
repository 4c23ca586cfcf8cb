"""What the families with a transformer, a KV cache and a summed feature map have in common.

A family says how it reads texts, what its transformer answers to a state, how logits become bits, and what
bits add to the feature map; everything that `NextScaleModel` promises of states and rows is here, once.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ttsvar_ray.kernels.operations import uses_fused
from ttsvar_ray.models.autoencoder import decode_rows, to_uint8
from ttsvar_ray.models.protocol import Execution
from ttsvar_ray.models.recorded_steps import RecordedSteps, Recorder, cuda_recorder
from ttsvar_ray.models.row_stability import autocast, channels_first, pad_images
from ttsvar_ray.models.sampling import SamplingSettings, exact_sums
from ttsvar_ray.models.state import KVCache, ScaleState
from ttsvar_ray.types import Float32Array, Float64Array, ScaleSchedule, UInt8Array
from ttsvar_ray.vision.pixels import to_device

SELECTOR_PIXELS = 256
"""Longer side of an image decoded for selectors: they look at 224 pixels anyway."""


def _decode_in_chunks(maps: Tensor, decode: Callable[[Tensor], Tensor], *, step: int) -> UInt8Array:
    """Return uint8 [B, height, width, 3], decoded `step` maps at a time; all begun before one is read.

    Where there are several chunks all have `step` maps, the last one filled up with its last: devices that
    choose kernels by shape then decode every map alike, wherever in the batch it is.

    Args:
        maps: [B, d, H, W], at least one.
        decode: [b, d, H, W] to uint8 [b, height, width, 3].
        step: most maps of one call.
    """
    rows = len(maps)
    filled = -(-rows // step) * step if rows > step else rows
    order = torch.arange(filled, device=maps.device).clamp(max=rows - 1)
    levels: UInt8Array = torch.cat([decode(maps[chunk]) for chunk in order.split(step)])[:rows].cpu().numpy()
    return levels


CONDITIONAL, UNCONDITIONAL = range(1), range(1, 2)
"""One of the two streams of guidance alone; both are `range(2)`."""

ChooseBits = Callable[[Tensor], Tensor]
"""From a family's logits (temperature and guidance applied) to bits uint8 [B, n, D]."""


class CachedModel(ABC):
    """Implements `NextScaleModel` but for what differs between families.

    Rows are independent: on a CPU a trajectory's bits and pixels are the same bytes in any batch.

    Args:
        name: written to the output rows.
        transformer, tokenizer: the family's modules, in evaluation mode, on one device.
        map_size: (H, W) cells of the feature map.
    """

    transformer: Any
    tokenizer: Any
    execution: Execution = Execution()
    """How it computes; `set_execution` changes it."""
    recorded: RecordedSteps | None = None
    """Plays small passes that were recorded; `record_passes` changes it."""

    def __init__(
        self,
        *,
        name: str,
        transformer: Any,
        tokenizer: Any,
        sampling: SamplingSettings,
        scale_schedule: ScaleSchedule,
        bits_per_token: int,
        map_size: tuple[int, int],
    ) -> None:
        if len(sampling.guidance) != len(scale_schedule):
            raise ValueError(
                f"sampling: settings for {len(sampling.guidance)} scales, the model has {len(scale_schedule)}"
            )
        self.name = name
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.scale_schedule = scale_schedule
        self.bits_per_token = bits_per_token
        self._map_size = map_size
        self.image_height = map_size[0] * tokenizer.config.patch_size
        self.image_width = map_size[1] * tokenizer.config.patch_size

    def set_execution(self, execution: Execution) -> None:
        """Choose how the model computes; to be called before the first state is made.

        Raises:
            ConfigurationError: fused kernels or CUDA graphs where there are none.
        """
        with self._on_its_gpu():
            fused = uses_fused(execution.kernels, self.device.type)
        recorder = cuda_recorder(execution.cuda_graphs, self.device.type)
        self.record_passes(recorder, must_record=execution.cuda_graphs == "always")
        self.execution = execution
        for module in self.transformer.modules():
            if hasattr(module, "fused"):
                module.fused = fused
        self.tokenizer.decoder.set_fused(fused, self.block_dtype)

    def record_passes(self, recorder: Recorder | None, *, must_record: bool = True) -> None:
        """Have small passes recorded and played again from now on; None ends it, and forgets them.

        `must_record`: see `RecordedSteps`.
        """
        self.recorded = None if recorder is None else RecordedSteps(recorder, must_record=must_record)

    def free_memory(self) -> None:
        """Let go of what only makes passes faster: recordings and the memory that belongs to them."""
        if self.recorded is not None:
            self.recorded.forget()

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> tuple[Any, ...]:
        """Encode [prompts] texts once; each entry serves all trajectories of its prompt."""

    @abstractmethod
    def run_scale(self, state: ScaleState, streams: range) -> tuple[Tensor, KVCache]:
        """Return raw logits [S, B, n, ...] of some streams at the next scale, and the extended cache.

        Args:
            state: its cache holds these streams, or more of which these are the first.
            streams: `range(2)`, or one of them alone.
        """

    @abstractmethod
    def mixed(self, raw: Tensor, scale_index: int, guidance: float) -> Tensor:
        """Return logits [B, n, ...] of raw ones: temperature and guidance applied."""

    @abstractmethod
    def draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Return bits uint8 [B, n, D] drawn from logits by uniforms float32 [B, n * D]."""

    @abstractmethod
    def log_probability(self, logits: Tensor, bits: Tensor) -> Tensor:
        """Return the log probability of drawn bits uint8 [B, n, D] as float64 [B, ...], an entry a draw."""

    @abstractmethod
    def accumulate(self, summed: Tensor, bits: Tensor, scale_index: int) -> Tensor:
        """Return the feature map [B, d, H, W] with one more scale of bits [B, n, D]."""

    @abstractmethod
    def check_given(self, bits: Tensor, scale_index: int) -> None:
        """Raise `ValueError` where given bits name nothing that could have been drawn."""

    @property
    def num_scales(self) -> int:
        return len(self.scale_schedule)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = self.transformer.pos_start.device
        return device

    @property
    def block_dtype(self) -> torch.dtype:
        """The dtype of the blocks, and so of the KV cache."""
        dtype: torch.dtype = self.transformer.block_dtype
        return dtype

    @property
    def num_streams(self) -> int:
        """Most sequences of each trajectory: conditional, and with guidance unconditional."""
        return max(map(self.sampling.streams_at, range(self.num_scales)))

    def cache_capacity(self, scale_index: int) -> int:
        """Return the tokens that a cache made at a scale has room for: up to where the execution stops."""
        stops = (stop for stop in self.execution.stops if stop >= scale_index)
        # The last scale is never kept.
        end = min(next(stops, scale_index), self.num_scales - 2)
        return sum(height * width for height, width in self.scale_schedule[: end + 1])

    @torch.inference_mode()
    def start(self, text: Sequence[Any], text_rows: Sequence[int]) -> ScaleState:
        """Return a state before scale 0 with one trajectory per entry of `text_rows`."""
        used = dict.fromkeys(text_rows)
        place = {row: position for position, row in enumerate(used)}
        size = (len(text_rows), self.tokenizer.config.codebook_dim, *self._map_size)
        return ScaleState(
            texts=tuple(text[row] for row in used),
            text_rows=tuple(place[row] for row in text_rows),
            summed=torch.zeros(size, device=self.device),
            cache=KVCache(),
        )

    def advance(self, state: ScaleState, uniforms: Float32Array) -> ScaleState:
        """Run the next scale and draw its bits; uniforms float32 [rows, n * bits_per_token]."""
        limits = self._limits(state, uniforms)
        return self.advance_with(state, lambda logits: self.draw(logits, limits))

    def advance_scored(self, state: ScaleState, uniforms: Float32Array) -> tuple[ScaleState, Float64Array]:
        """Do as `advance`, and return how likely each row's bits are, float64 [rows] in nats."""
        limits = self._limits(state, uniforms)
        scores: list[Float64Array] = []

        def choose(logits: Tensor) -> Tensor:
            bits = self.draw(logits, limits)
            scores.append(exact_sums(self.log_probability(logits, bits)))
            return bits

        return self.advance_with(state, choose), scores[0]

    def _limits(self, state: ScaleState, uniforms: Float32Array) -> Tensor:
        """Return the uniforms of the next scale on the model's device."""
        expected, at = (state.num_rows, self._tokens(state) * self.bits_per_token), state.scale_index
        if uniforms.shape != expected:
            raise ValueError(f"uniforms: expected {expected} at scale {at}, got {uniforms.shape}")
        return to_device(torch.from_numpy(np.ascontiguousarray(uniforms)), self.device)

    @torch.inference_mode()
    def advance_with(self, state: ScaleState, choose: ChooseBits) -> ScaleState:
        """Run the next scale and let `choose` turn its logits into bits."""
        tokens = self._tokens(state)
        logits, cache = self.next_logits(state)
        bits = choose(logits)
        assert bits.shape == (state.num_rows, tokens, self.bits_per_token), bits.shape
        return self._extend(state, bits, cache)

    def next_logits(self, state: ScaleState) -> tuple[Tensor, KVCache]:
        """Return the logits of the next scale, temperature and guidance applied, and the extended cache."""
        scale_index = state.scale_index
        with self._on_its_gpu():
            if self.sampling.begins_unconditional(scale_index):
                state = self._caught_up(state)
            raw, cache = self.run_scale(state, range(self.sampling.streams_at(scale_index)))
        return self.mixed(raw, scale_index, self.sampling.guidance[scale_index]), cache

    def _caught_up(self, state: ScaleState) -> ScaleState:
        """Return a state of the conditional stream with the other one beside it, replayed from its bits.

        The keys and values are those that it would have, had it run all along.
        """
        blank = torch.zeros_like(state.summed)
        other = dataclasses.replace(state, summed=blank, cache=KVCache(), bits=())
        for bits in state.bits:
            _, cache = self.run_scale(other, UNCONDITIONAL)
            other = self._extend(other, bits, cache)
        return dataclasses.replace(state, cache=state.cache.with_stream(other.cache))

    def _extend(self, state: ScaleState, bits: Tensor, cache: KVCache) -> ScaleState:
        return ScaleState(
            texts=state.texts,
            text_rows=state.text_rows,
            summed=self.accumulate(state.summed, bits, state.scale_index),
            cache=cache,
            bits=(*state.bits, bits),
        )

    @torch.inference_mode()
    def replay(self, state: ScaleState, bits: Sequence[np.ndarray]) -> ScaleState:
        """Run further scales with given bits, uint8 [rows, n, bits_per_token] each.

        Scale by scale through the same kernels as `advance`, so that the result is the same bytes.

        Raises:
            ValueError: another shape, or bits that name nothing.
        """
        for scale_bits in bits:
            given = self._given_bits(state, scale_bits)
            # Nothing reads the last scale's keys: its bits alone complete the feature map.
            last = state.scale_index == self.num_scales - 1
            state = self._extend(state, given, state.cache if last else self.next_logits(state)[1])
        return state

    @torch.inference_mode()
    def drawn(self, bits: Sequence[np.ndarray]) -> ScaleState:
        """Return the state to decode that `replay` from the beginning gives, without its cache.

        Args:
            bits: uint8 [rows, n, bits_per_token] of the first scales, at least one.

        Raises:
            ValueError: another shape, or bits that name nothing.
        """
        state = self.start((None,), [0] * len(bits[0]))
        for scale_bits in bits:
            state = self._extend(state, self._given_bits(state, scale_bits), state.cache)
        return state

    def _given_bits(self, state: ScaleState, scale_bits: np.ndarray) -> Tensor:
        """Return given bits of a state's next scale on the model's device."""
        expected, at = (state.num_rows, self._tokens(state), self.bits_per_token), state.scale_index
        if scale_bits.shape != expected:
            raise ValueError(f"bits: expected {expected} at scale {at}, got {scale_bits.shape}")
        given = to_device(torch.from_numpy(np.array(scale_bits, dtype=np.uint8)), self.device)
        self.check_given(given, state.scale_index)
        return given

    @torch.inference_mode()
    def gather(self, state: ScaleState, rows: Sequence[int]) -> ScaleState:
        """Select and repeat trajectories."""
        return state.gather(rows)

    @torch.inference_mode()
    def concatenate(self, states: Sequence[ScaleState]) -> ScaleState:
        """Stack the trajectories of states before the same scale."""
        return ScaleState.concatenate(states)

    @torch.inference_mode()
    def look_ahead(self, state: ScaleState, scale_index: int) -> ScaleState:
        """Return a state run on to a scale: without guidance, each bit the likelier of its two values.

        It can be decoded, and not gone on from: it lacks the unconditional stream.
        """
        while state.scale_index <= scale_index:
            at, tokens = state.scale_index, self._tokens(state)
            with self._on_its_gpu():
                raw, cache = self.run_scale(state, CONDITIONAL)
            halves = torch.full((state.num_rows, tokens * self.bits_per_token), 0.5, device=self.device)
            state = self._extend(state, self.draw(self.mixed(raw, at, 1.0), halves), cache)
        return state

    def feature_map(self, state: ScaleState) -> Tensor:
        """Return the feature map of the finished scales, float32 [rows, d, H, W]."""
        return state.summed

    def scale_index(self, state: ScaleState) -> int:
        """Return the number of finished scales."""
        return state.scale_index

    def bits(self, state: ScaleState) -> tuple[np.ndarray, ...]:
        """Return the bits of the finished scales, each uint8 [rows, n, bits_per_token]."""
        return tuple(scale.cpu().numpy() for scale in state.bits)

    def decode(self, state: ScaleState, *, size: str = "full") -> UInt8Array:
        """Decode the feature map so far to uint8 RGB [rows, height, width, 3]."""
        return _decode_in_chunks(
            state.summed,
            lambda maps: to_uint8(self.decode_float(maps, size=size)),
            step=self._decode_rows(self._decoded_size(state.summed, size)),
        )

    @torch.inference_mode()
    def decode_float(self, summed: Tensor, *, size: str = "full") -> Tensor:
        """Decode feature maps [B, d, H, W] to images [B, 3, height, width] in [-1, 1]."""
        rows, reduced = summed.shape[0], self._decoded_size(summed, size)
        if reduced != tuple(summed.shape[-2:]):
            # By area: the map is a sum of fine codes, and skipping cells would alias them.
            summed = F.interpolate(channels_first(summed), size=reduced, mode="area")
        # Fused, the decoder is narrow itself: autocast would have it upsample in float32.
        narrow = self.device.type != "cpu" and self.block_dtype != torch.float32
        narrow = narrow and not self.tokenizer.decoder.fused
        with self._on_its_gpu(), autocast(self.device, dtype=self.block_dtype, enabled=narrow):
            if self.device.type == "cpu" and self._decode_rows(reduced) == 1:
                # Always alone, an image is the same bytes in any batch without a second one beside it.
                return torch.cat([self.tokenizer.decode(channels_first(one)) for one in summed.split(1)])
            images: Tensor = self.tokenizer.decode(pad_images(summed))[:rows]
        return images

    def _on_its_gpu(self) -> torch.cuda.device:
        """Make the model's GPU the current one, on which kernels and graphs start; elsewhere do nothing."""
        return torch.cuda.device(self.device if self.device.type == "cuda" else -1)

    def _decode_rows(self, map_size: tuple[int, int]) -> int:
        """Return how many feature maps of a size are decoded in one call."""
        patch = self.tokenizer.config.patch_size
        return decode_rows(map_size[0] * patch, map_size[1] * patch, device=self.device.type)

    def _tokens(self, state: ScaleState) -> int:
        if state.scale_index >= self.num_scales:
            raise ValueError(f"state: all {self.num_scales} scales are finished; decode it")
        height, width = self.scale_schedule[state.scale_index]
        return height * width

    def _decoded_size(self, summed: Tensor, size: str) -> tuple[int, int]:
        """Return (height, width), in cells, of the feature map that is decoded."""
        height, width = summed.shape[-2:]
        longer, largest = max(height, width), max(SELECTOR_PIXELS // self.tokenizer.config.patch_size, 1)
        if size != "selector" or longer <= largest:
            return height, width
        return max(round(height * largest / longer), 1), max(round(width * largest / longer), 1)
