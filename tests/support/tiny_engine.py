"""Engines of the tiny model that a Ray worker can build: functions and values that pickle by name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.plans import tts_var_plan
from tests.support.tiny_model import TinyExtractor, TinyModel, TinyReward, TinyState
from ttsvar_ray.engine.engine import Engine, EngineSettings
from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.rewards.protocol import RewardEnsemble
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.types import Float32Array, UInt8Array


class MortalModel(TinyModel):
    """Ends its process or hangs in the middle of a segment: once, or whenever it sees one text."""

    def __init__(
        self,
        *,
        die_once: Path | None,
        die_on: str | None,
        fail_on: str | None,
        sleep_once: Path | None,
        pause_s: float,
        pixels_per_token: int = 4,
    ) -> None:
        """Make the model.

        Args:
            die_once: a file that the first death creates; while it is there, nobody dies of it.
            die_on: a text that contains this kills whoever encodes it.
            fail_on, pixels_per_token: as in `TinyModel`.
            sleep_once: as `die_once`, for a worker that never answers again.
            pause_s: seconds that the last scale takes longer, so that there is time for mischief.
        """
        super().__init__(fail_on=fail_on, pixels_per_token=pixels_per_token)
        self._sleep_once = sleep_once
        self._die_once = die_once
        self._die_on = die_on
        self._pause_s = pause_s

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        if self._die_on is not None and any(self._die_on in text for text in texts):
            os._exit(1)
        return super().encode_text(texts)

    def advance(self, state: TinyState, uniforms: Float32Array) -> TinyState:
        if self.scale_index(state) == 8 and _is_first(self._die_once):
            os._exit(1)
        if self.scale_index(state) == 8 and _is_first(self._sleep_once):
            time.sleep(3600)
        if self.scale_index(state) == self.num_scales - 1:
            time.sleep(self._pause_s)
        return super().advance(state, uniforms)


def _is_first(marker: Path | None) -> bool:
    """Whether no process has been here before; leaves the marker for the others."""
    if marker is None:
        return False
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class NoisyModel(MortalModel):
    """Images of noise, which no file format makes small."""

    def __init__(self, **mischief: Any) -> None:
        super().__init__(pixels_per_token=24, **mischief)
        shape = (self.image_height, self.image_width, 3)
        self._noise = np.random.default_rng(1).integers(0, 256, size=shape, dtype=np.uint8)

    def decode(self, state: TinyState, *, size: str = "full") -> UInt8Array:
        return super().decode(state, size=size) ^ self._noise


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyEngineBuilder:
    """Builds a tiny engine wherever it is called."""

    seed: int
    rows: int = 8
    noisy: bool = False
    die_once: Path | None = None
    die_on: str | None = None
    fail_on: str | None = None
    sleep_once: Path | None = None
    pause_s: float = 0.0
    unusable: str | None = None
    plan: Plan = field(default_factory=tts_var_plan)

    def __call__(self, rewards: Callable[[], RewardEnsemble] | None = None) -> Engine:
        if self.unusable is not None:
            raise CheckpointError(self.unusable)
        model = NoisyModel if self.noisy else MortalModel
        mortal = model(
            die_once=self.die_once,
            die_on=self.die_on,
            fail_on=self.fail_on,
            sleep_once=self.sleep_once,
            pause_s=self.pause_s,
        )
        return Engine(
            model=mortal,
            reward=TinyReward() if rewards is None else rewards(),
            extractor=TinyExtractor(),
            plan=self.plan,
            run_seed=self.seed,
            settings=EngineSettings(micro_batch_rows=self.rows),
        )


def tiny_rewards() -> RewardEnsemble:
    """Return the reward of a tiny engine, for a process of its own."""
    return RewardEnsemble([TinyReward()])
