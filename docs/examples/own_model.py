"""A next-scale model of one's own, in a hundred lines: quilts whose patches follow their text's colour.

python docs/examples/own_model.py
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.engine.local import run_local
from ttsvar_ray.models.contract import check_model
from ttsvar_ray.results import PromptResult
from ttsvar_ray.rewards.protocol import RewardText
from ttsvar_ray.search.strategy import compile_plan
from ttsvar_ray.types import Float32Array, Prompt, UInt8Array

SCALES = ((1, 1), (2, 2), (4, 4), (8, 8))


def colour(text: str) -> np.ndarray:
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=3).digest(), dtype=np.uint8)


@dataclass(frozen=True)
class QuiltState:  # a value: the model never changes one, it returns another
    target: np.ndarray  # int64 [rows, 3], the colour of each trajectory's text
    quilt: np.ndarray  # int64 [rows, 8, 8, 3], what the finished scales add up to
    bits: tuple[np.ndarray, ...] = ()


class QuiltModel:
    name = "quilts"
    scale_schedule = SCALES
    num_scales = len(SCALES)
    bits_per_token = 3  # brighter or darker, for red, green and blue
    image_height = image_width = 64

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([colour(text) for text in texts]).astype(np.int64)

    def start(self, text: np.ndarray, text_rows: Sequence[int]) -> QuiltState:
        return QuiltState(text[list(text_rows)], np.full((len(text_rows), 8, 8, 3), 128))

    def advance(self, state: QuiltState, uniforms: Float32Array) -> QuiltState:
        side = SCALES[len(state.bits)][0]
        patches = state.quilt.reshape(-1, side, 8 // side, side, 8 // side, 3).sum(axis=(2, 4))
        gap = state.target[:, None, None] - patches // (8 // side) ** 2  # int64 [rows, side, side, 3]
        brighter = np.clip(gap + 128, 16, 240).astype(np.float32) / np.float32(256)
        bits = uniforms.reshape(brighter.shape) < brighter  # entry i decides bit i
        return self._add(state, bits.reshape(len(bits), side * side, 3).astype(np.uint8))

    def replay(self, state: QuiltState, bits: Sequence[np.ndarray]) -> QuiltState:
        for scale in bits:
            state = self._add(state, scale)
        return state

    def _add(self, state: QuiltState, bits: np.ndarray) -> QuiltState:
        side, step = SCALES[len(state.bits)][0], 64 >> len(state.bits)
        signs = (2 * bits.astype(np.int64) - 1).reshape(-1, side, side, 3)
        fine = signs.repeat(8 // side, axis=1).repeat(8 // side, axis=2)
        return replace(state, quilt=state.quilt + step * fine, bits=(*state.bits, bits))

    def gather(self, state: QuiltState, rows: Sequence[int]) -> QuiltState:
        picked = list(rows)
        return QuiltState(state.target[picked], state.quilt[picked], tuple(b[picked] for b in state.bits))

    def concatenate(self, states: Sequence[QuiltState]) -> QuiltState:
        bits = tuple(np.concatenate(scale) for scale in zip(*(s.bits for s in states), strict=True))
        return QuiltState(
            np.concatenate([s.target for s in states]), np.concatenate([s.quilt for s in states]), bits
        )

    def scale_index(self, state: QuiltState) -> int:
        return len(state.bits)

    def bits(self, state: QuiltState) -> tuple[np.ndarray, ...]:
        return state.bits

    def decode(self, state: QuiltState, *, size: str = "full") -> UInt8Array:
        pixels = np.clip(state.quilt, 0, 255).astype(np.uint8)
        return pixels.repeat(8, axis=1).repeat(8, axis=2)


class ColourReward:
    name, recipe = "colour", "images as they are"

    def preprocess(self, images: UInt8Array) -> UInt8Array:
        return images

    def encode_text(self, texts: Sequence[str]) -> list[RewardText]:
        return [RewardText(content=colour(text).astype(np.float64)) for text in texts]

    def score_prepared(self, pixels: UInt8Array, texts: Sequence[RewardText]) -> Float32Array:
        pairs = zip(pixels, texts, strict=True)
        distance = [np.abs(image.mean(axis=(0, 1)) - text.content).mean() for image, text in pairs]
        return -np.asarray(distance, dtype=np.float32) / 256

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        return self.score_prepared(images, self.encode_text(texts))


def best_rewards(strategy: str, texts: Sequence[str], **search: object) -> list[float]:
    plan = compile_plan(scale_schedule=SCALES, strategy=strategy, **search)
    engine = Engine(
        model=QuiltModel(),
        reward=ColourReward(),
        extractor=None,
        plan=plan,
        run_seed=0,
        settings=EngineSettings(),
    )
    prompts = [Prompt(row=i, prompt_id=f"p{i}", ordinal=0, text=text) for i, text in enumerate(texts)]
    outcomes = run_local(prompts, plan=plan, engines=[engine], run_seed=0, settings=CoordinatorSettings())
    return [outcome.images[0].reward for outcome in outcomes if isinstance(outcome, PromptResult)]


if __name__ == "__main__":
    check_model(QuiltModel(), ["a red barn", "the sea"])
    names = [f"quilt {number}" for number in range(200)]
    search = {
        "batch_schedule": (8, 4, 2, 2),
        "cluster_scales": (),
        "resample_scales": (1, 2),
        "lambda_": 100,
    }
    print(f"raw      {np.mean(best_rewards('raw', names)):+.4f}")
    print(f"tts-var  {np.mean(best_rewards('tts-var', names, **search)):+.4f}")
