"""Small outcomes with real pictures."""

from __future__ import annotations

import io
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from ttsvar_ray.dataset.rows import RowContext
from ttsvar_ray.results import FinalImage, PromptFailure, PromptResult, ResultImage, SelectionRecord
from ttsvar_ray.types import Prompt

COUNTERS = {"parents_replayed": 5, "text_truncated": 1, "reward_texts_truncated": 1, "rewards_not_finite": 3}
CONTEXT = RowContext(model="shapes", strategy="tts-var", seed=7, reward_name="shapes")


def prompt(row: int, **columns: Any) -> Prompt:
    text = f"prompt number {row}"
    return Prompt(row=row, prompt_id=f"id{row}", ordinal=0, text=text, columns=MappingProxyType(columns))


def pixels(row: int, rank: int = 0) -> np.ndarray:
    return np.full((6, 8, 3), (row * 20 + rank) % 256, dtype=np.uint8)


def encoded(row: int, rank: int = 0) -> FinalImage:
    file = io.BytesIO()
    Image.fromarray(pixels(row, rank)).save(file, format="PNG")
    return FinalImage.of_bytes(file.getvalue(), width=8, height=6, image_format="png")


def result(row: int, *, images: int = 1, payload: Any = None, **columns: Any) -> PromptResult:
    kept = tuple(
        ResultImage(
            rank=rank,
            image=encoded(row, rank),
            reward=row - 0.5 * rank,
            reward_history=(float("nan"), 0.25),
            lineage=(3, 1, rank),
            bits=(b"\x01", bytes([row, rank])),
            member_rewards=(0.25, row - 0.5 * rank),
        )
        for rank in range(images)
    )
    trace = (
        SelectionRecord(
            prompt_key=f"id{row}#0",
            scale_index=6,
            kind="resample",
            ancestor_index=(0, 0),
            rewards=(1.0, 2.0),
            numbers={"log_weights": (-0.5, -1.5), "ess": (1.5,), "novelty": (0.25, 0.75)},
            placement=("w0", "w1"),
            moved=1,
            reason="balance",
        ),
    )
    return PromptResult(
        prompt=prompt(row, **columns), images=kept, trace=trace, attempts=1, seconds=0.1, counters=COUNTERS
    )


def failure(row: int, **columns: Any) -> PromptFailure:
    return PromptFailure(prompt=prompt(row, **columns), attempts=3, errors=("reward: NaN",))
