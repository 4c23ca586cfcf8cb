"""Seconds of the parts of a prompt, each on its own: scales, decoder, rewards, features, host work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.image_files import photo_like
from ttsvar_ray.engine.encode import DEFAULT_QUALITY, ImageEncoder
from ttsvar_ray.features.registry import FeatureExtractor
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.rewards.protocol import Reward
from ttsvar_ray.rng import bit_uniforms

ROWS = (1, 8, 32)
"""Trajectories of a pass: one alone, a population of N=1, four of them."""
DECODED = {"full": (1, 2), "selector": (8, 32)}
"""Images of a call, by size."""
LOOKED_AT = (4, 8, 32)
REPEATS = 3
UNTIMED = 2
"""Runs of a pass before those that are timed: at the second one it is recorded, where passes are."""
MOST_TOKENS = 2
"""A pass goes on while its trajectories together have at most the tokens of so many whole images."""


def seconds_of(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Return the median time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def wait() -> None:
    """Let the GPU finish what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def scale_seconds(
    model: InfinityModel, rows: int, text: str, *, repeats: int = REPEATS
) -> list[float | None]:
    """Return the median time of each scale of a pass of so many trajectories; None beyond `MOST_TOKENS`.

    Scales are timed in whole runs from scale 0, as an engine runs them, whose stops the model's execution
    should have: memory is taken up to the next one.
    """
    tokens = np.cumsum([height * width for height, width in model.scale_schedule])
    last = int((rows * tokens <= max(MOST_TOKENS, rows * tokens[0] / tokens[-1]) * tokens[-1]).sum())
    encoded = model.encode_text([text])
    uniforms = [
        np.stack(
            [bit_uniforms(0, f"row-{row}", scale, 0, h * w * model.bits_per_token) for row in range(rows)]
        )
        for scale, (h, w) in enumerate(model.scale_schedule[:last])
    ]
    times: list[list[float]] = [[] for _ in range(last)]
    for _ in range(UNTIMED + repeats):
        state = model.start(encoded, [0] * rows)
        for scale in range(last):
            wait()
            start = time.perf_counter()
            state = model.advance(state, uniforms[scale])
            wait()
            times[scale].append(time.perf_counter() - start)
    medians: list[float | None] = [statistics.median(each[UNTIMED:]) for each in times]
    return medians + [None] * (model.num_scales - last)


def measure_parts(
    model: InfinityModel,
    reward: Reward,
    extractor: FeatureExtractor,
    text: str,
    *,
    rows: Sequence[int] = ROWS,
    decoded: Mapping[str, Sequence[int]] = DECODED,
    repeats: int = REPEATS,
) -> dict[str, Any]:
    """Return milliseconds: of each scale by rows, and of every other part by images."""

    def milliseconds(call: Callable[[], Any]) -> float:
        return round(1000 * seconds_of(call, repeats), 3)

    height, width = model.image_height, model.image_width
    picture = photo_like(np.random.default_rng(0), max(height, width))[:height, :width]
    encoded = model.encode_text([text])
    parts: dict[str, float] = {"text, 1 prompt": milliseconds(lambda: model.encode_text([text]))}
    for size, counts in decoded.items():
        for count in counts:
            state = model.advance(
                model.start(encoded, [0] * count), np.zeros((count, model.bits_per_token), np.float32)
            )
            name = f"decode {size}, {count} images"
            parts[name] = milliseconds(lambda state=state, size=size: model.decode(state, size=size))  # type: ignore[misc]
    for count in LOOKED_AT:
        images = np.stack([picture] * count)
        parts[f"reward, {count} images"] = milliseconds(
            lambda images=images, count=count: reward.score(images, [text] * count)  # type: ignore[misc]
        )
        parts[f"reward pixels alone, {count} images"] = milliseconds(
            lambda images=images: reward.preprocess(images)  # type: ignore[misc]
        )
        parts[f"features, {count} images"] = milliseconds(
            lambda images=images: extractor.extract(images)  # type: ignore[misc]
        )
    encoder = ImageEncoder(image_format="png", quality=DEFAULT_QUALITY, threads=1)
    parts["PNG file, 1 photo-like image"] = milliseconds(lambda: encoder.encode(picture))
    tokens = model.scale_schedule[-1][0] * model.scale_schedule[-1][1]
    parts["uniforms of the last scale, 1 trajectory"] = milliseconds(
        lambda: bit_uniforms(0, "p", 0, 0, tokens * model.bits_per_token)
    )
    return {
        "milliseconds of each scale, by trajectories": {
            str(count): [
                None if each is None else round(1000 * each, 3)
                for each in scale_seconds(model, count, text, repeats=repeats)
            ]
            for count in rows
        },
        "milliseconds": parts,
    }
