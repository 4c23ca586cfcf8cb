"""A complete next-scale model, reward and extractor in integer numpy: microseconds a scale, exact.

Each row is computed with integer arithmetic on that row alone, so equal inputs give equal bits in any
batch. It is honest about what engines get wrong: the logits of a scale depend on every earlier scale
through an order-sensitive cache (a wrong replay shows), on the text, and on the feature map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ttsvar_ray.rewards.protocol import RewardText
from ttsvar_ray.types import Float32Array, Float64Array, Int64Array, ScaleSchedule, UInt8Array

TINY_SCHEDULE: ScaleSchedule = (
    (1, 1), (1, 1), (2, 2), (2, 2), (2, 2), (3, 3), (3, 3), (4, 4), (4, 4), (6, 6), (6, 6), (8, 8), (8, 8),
)  # fmt: skip
"""13 scales, so that the published plan applies literally."""

TINY_TEXT_LENGTH = 60
"""Longer texts count as cut by the reward."""

_CHANNELS = 5
_TEXT_WIDTH = 8
_CACHE_PRIME = 1_000_003


@dataclass(frozen=True, slots=True)
class TinyState:
    """Rows of trajectories.

    Attributes:
        text: int64 [rows, _TEXT_WIDTH].
        cache: int64 [rows, _CHANNELS], folded over the finished scales in order.
        feature_map: int64 [rows, height, width, _CHANNELS].
        bits: per finished scale uint8 [rows, h * w, bits_per_token].
    """

    text: Int64Array
    cache: Int64Array
    feature_map: Int64Array
    bits: tuple[UInt8Array, ...]


class TinyModel:
    """A `NextScaleModel`; see the module docstring."""

    def __init__(
        self,
        *,
        scale_schedule: ScaleSchedule = TINY_SCHEDULE,
        pixels_per_token: int = 4,
        fail_on: str | None = None,
        memory_rows: int | None = None,
    ) -> None:
        """Make the model; equal arguments make equal models.

        Args:
            scale_schedule: tokens of each scale.
            pixels_per_token: side of the square of pixels that one token of the last scale covers.
            fail_on: encoding a text that contains this raises ValueError.
            memory_rows: advancing more rows than this raises MemoryError.
        """
        self.name = "tiny"
        self.scale_schedule = scale_schedule
        self.bits_per_token = _CHANNELS
        self._height, self._width = scale_schedule[-1]
        self._pixels_per_token = pixels_per_token
        self.image_height = self._height * pixels_per_token
        self.image_width = self._width * pixels_per_token
        self._fail_on = fail_on
        self._memory_rows = memory_rows
        generator = np.random.default_rng(20250718)
        self._mix = generator.integers(-3, 4, size=(_CHANNELS, _CHANNELS))
        self._from_text = generator.integers(-3, 4, size=(_TEXT_WIDTH, _CHANNELS))
        self.calls: list[tuple[str, int]] = []
        """(method, rows) of every call that costs something: tests read it."""

    @property
    def num_scales(self) -> int:
        return len(self.scale_schedule)

    def encode_text(self, texts: Sequence[str]) -> Int64Array:
        self.calls.append(("encode_text", len(texts)))
        for text in texts:
            if self._fail_on is not None and self._fail_on in text:
                raise ValueError(f"text cannot be encoded: {text!r}")
        digests = [hashlib.blake2b(t.encode(), digest_size=_TEXT_WIDTH).digest() for t in texts]
        return np.array([[byte - 128 for byte in digest] for digest in digests], dtype=np.int64)

    def cuts_text(self, text: str) -> bool:
        return len(text) > TINY_TEXT_LENGTH

    def start(self, text: Int64Array, text_rows: Sequence[int]) -> TinyState:
        rows = len(text_rows)
        return TinyState(
            text=text[list(text_rows)],
            cache=np.zeros((rows, _CHANNELS), dtype=np.int64),
            feature_map=np.zeros((rows, self._height, self._width, _CHANNELS), dtype=np.int64),
            bits=(),
        )

    def advance(self, state: TinyState, uniforms: Float32Array) -> TinyState:
        rows = state.text.shape[0]
        self.calls.append(("advance", rows))
        if self._memory_rows is not None and rows > self._memory_rows:
            raise MemoryError(f"{rows} rows do not fit; {self._memory_rows} do")
        scale_index = len(state.bits)
        height, width = self.scale_schedule[scale_index]
        count = height * width * self.bits_per_token
        assert uniforms.shape == (rows, count)
        assert uniforms.dtype == np.float32
        thresholds = self._thresholds(state)
        bits = (uniforms.reshape(thresholds.shape) < thresholds).astype(np.uint8)
        return self._append(state, bits)

    def advance_scored(self, state: TinyState, uniforms: Float32Array) -> tuple[TinyState, Float64Array]:
        thresholds = self._thresholds(state).astype(np.float64)
        advanced = self.advance(state, uniforms)
        chosen = np.where(advanced.bits[-1] == 1, thresholds, 1 - thresholds)
        return advanced, np.log(chosen).reshape(len(chosen), -1).sum(axis=1)

    def _thresholds(self, state: TinyState) -> Float32Array:
        """Return how likely each bit of the next scale is 1."""
        logits = self._logits(state, len(state.bits))
        # Thresholds of 1/64: exactly representable, so the comparison is exact.
        return (np.clip(logits, -28, 28) + 32).astype(np.float32) / np.float32(64)

    def replay(self, state: TinyState, bits: Sequence[np.ndarray]) -> TinyState:
        self.calls.append(("replay", state.text.shape[0]))
        for scale in bits:
            state = self._append(state, np.asarray(scale, dtype=np.uint8))
        return state

    def gather(self, state: TinyState, rows: Sequence[int]) -> TinyState:
        picked = list(rows)
        return TinyState(
            text=state.text[picked],
            cache=state.cache[picked],
            feature_map=state.feature_map[picked],
            bits=tuple(scale[picked] for scale in state.bits),
        )

    def concatenate(self, states: Sequence[TinyState]) -> TinyState:
        assert len({len(s.bits) for s in states}) == 1, "states must be before the same scale"
        return TinyState(
            text=np.concatenate([s.text for s in states]),
            cache=np.concatenate([s.cache for s in states]),
            feature_map=np.concatenate([s.feature_map for s in states]),
            bits=tuple(np.concatenate(scales) for scales in zip(*(s.bits for s in states), strict=True)),
        )

    def look_ahead(self, state: TinyState, scale_index: int) -> TinyState:
        self.calls.append(("look_ahead", state.text.shape[0]))
        while len(state.bits) <= scale_index:
            state = self._append(state, (self._thresholds(state) > 0.5).astype(np.uint8))
        return state

    def scale_index(self, state: TinyState) -> int:
        return len(state.bits)

    def feature_map(self, state: TinyState) -> Int64Array:
        return state.feature_map

    def bits(self, state: TinyState) -> tuple[np.ndarray, ...]:
        return state.bits

    def decode(self, state: TinyState, *, size: str = "full") -> UInt8Array:
        assert size in ("full", "selector")
        self.calls.append(("decode", state.text.shape[0]))
        colours = np.clip(128 + 2 * state.feature_map[..., :3], 0, 255).astype(np.uint8)
        return colours.repeat(self._pixels_per_token, axis=1).repeat(self._pixels_per_token, axis=2)

    def _logits(self, state: TinyState, scale_index: int) -> Int64Array:
        """Return int64 [rows, h * w, bits_per_token]."""
        rows, columns = self._grid(scale_index)
        local = state.feature_map[:, rows][:, :, columns]  # nearest tokens of the full grid
        height, width = self.scale_schedule[scale_index]
        local = local.reshape(-1, height * width, _CHANNELS)
        context = state.text @ self._from_text // 16 + state.cache % 17 - 8 + scale_index % 3
        return local @ self._mix // 32 + context[:, None, :]

    def _append(self, state: TinyState, bits: UInt8Array) -> TinyState:
        scale_index = len(state.bits)
        height, width = self.scale_schedule[scale_index]
        assert bits.shape == (state.text.shape[0], height * width, self.bits_per_token)
        signs = 2 * bits.astype(np.int64) - 1
        position = 1 + np.arange(height * width)[None, :, None]
        cache = (state.cache * 31 + (signs * position).sum(axis=1) + 7) % _CACHE_PRIME
        grid = signs.reshape(-1, height, width, _CHANNELS)
        rows = np.arange(self._height) * height // self._height
        columns = np.arange(self._width) * width // self._width
        step = max(1, 24 - 2 * scale_index)
        feature_map = state.feature_map + step * grid[:, rows][:, :, columns]
        return replace(state, cache=cache, feature_map=feature_map, bits=(*state.bits, bits))

    def _grid(self, scale_index: int) -> tuple[Int64Array, Int64Array]:
        height, width = self.scale_schedule[scale_index]
        return np.arange(height) * self._height // height, np.arange(width) * self._width // width


class TinyMapReward:
    """A score of the map that says nothing, and that no two maps share."""

    def score_maps(self, maps: Int64Array, texts: Sequence[str]) -> Float32Array:
        weights = np.arange(maps[0].size) % 97
        return ((maps.reshape(len(maps), -1) * weights).sum(axis=1) % 1009).astype(np.float32)


class TinyReward:
    """Higher where the mean colour is nearer to a colour that the text names by its digest."""

    def __init__(self, *, bad_value: float = float("nan"), bad_on: str | None = None) -> None:
        """Make the reward; texts that contain `bad_on` are given `bad_value`."""
        self.name = "tiny-reward"
        self.recipe = "images as they are"
        self._bad_value = bad_value
        self._bad_on = bad_on

    def preprocess(self, images: UInt8Array) -> UInt8Array:
        return images

    def encode_text(self, texts: Sequence[str]) -> list[RewardText]:
        return [RewardText(content=text, truncated=len(text) > TINY_TEXT_LENGTH) for text in texts]

    def score_prepared(self, pixels: UInt8Array, texts: Sequence[RewardText]) -> Float32Array:
        return self.score(pixels, [text.content for text in texts])

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        assert images.dtype == np.uint8
        assert len(images) == len(texts)
        rewards = np.empty(len(texts), dtype=np.float32)
        for i, text in enumerate(texts):
            target = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=3).digest(), dtype=np.uint8)
            total = images[i].reshape(-1, 3).sum(axis=0, dtype=np.int64)
            distance = np.abs(total - target.astype(np.int64) * images[i][..., 0].size).sum()
            rewards[i] = -np.float32(distance) / np.float32(images[i].size * 64)
            if self._bad_on is not None and self._bad_on in text:
                rewards[i] = self._bad_value
        return rewards


class TinyExtractor:
    """The image's mean grey in a 2 x 2 grid."""

    name = "tiny-extractor"

    def extract(self, images: UInt8Array) -> Float32Array:
        count, height, width, _ = images.shape
        quarters = images.reshape(count, 2, height // 2, 2, width // 2, 3).astype(np.int64)
        return quarters.sum(axis=(2, 4, 5)).reshape(count, 4).astype(np.float32)
