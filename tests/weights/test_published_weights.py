"""Published weights, where they are at hand: they load as they are, and draw and score.

    TTSVAR_WEIGHTS=weights python -m pytest -m weights

The folder is laid out as `ttsvar-ray doctor` prints it: a model's files under their published names, each
reward and extractor in a folder of its own name. What is not there is skipped by name.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ttsvar_ray.models.description import ModelChoice
from ttsvar_ray.models.registry import describe_model, load_model, resolve_device
from ttsvar_ray.rewards.registry import build_reward
from ttsvar_ray.rng import bit_uniforms
from ttsvar_ray.types import UInt8Array

pytestmark = [pytest.mark.weights, pytest.mark.timeout(3600)]

ROOT = Path(os.environ.get("TTSVAR_WEIGHTS", "weights"))
MODELS = (
    "infinity-2b",
    "infinity-8b",
    "infinity-8b-512",
    "var-d16",
    "var-d20",
    "var-d24",
    "var-d30",
    "var-d36",
)
REWARDS = (
    "image-reward",
    "hps-v2.1",
    "hps-v2.0",
    "pick-score",
    "clip-score",
    "aesthetic-v2.5",
    "laion-aesthetic",
    "hps-v3",
    "hps-v3-plus-plus",
)


def _draw(name: str, prompt: str) -> UInt8Array:
    # The smallest published size: seconds on a GPU, minutes on a CPU.
    resolution = "0.06M" if name.startswith("infinity") else None
    choice = ModelChoice(name=name, path=str(ROOT), resolution=resolution)
    missing = [
        str(location)
        for location in describe_model(choice).weights.values()
        if isinstance(location.root, Path) and not (location.root / location.name).exists()
    ]
    if missing:
        pytest.skip(f"not there: {', '.join(missing)}")
    model = load_model(choice)
    state = model.start(model.encode_text([prompt]), [0, 0])
    for scale_index, (height, width) in enumerate(model.scale_schedule):
        count = height * width * model.bits_per_token
        uniforms = [bit_uniforms(0, prompt, scale_index, slot, count) for slot in range(2)]
        state = model.advance(state, np.stack(uniforms))
    return model.decode(state)


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_draws(name: str) -> None:
    images = _draw(name, "golden retriever")
    assert images.std() > 10, "a grey image"
    assert not np.array_equal(images[0], images[1])


@pytest.mark.parametrize("name", REWARDS)
def test_a_published_reward_tells_a_picture_from_noise(name: str) -> None:
    if not (ROOT / name).is_dir():
        pytest.skip(f"not there: {ROOT / name}")
    reward = build_reward(name, path=ROOT / name, device=str(resolve_device("auto")))
    rows, columns = np.mgrid[0:256, 0:256]
    disc = np.hypot(rows - 128, columns - 128) < 80
    picture = np.where(disc[..., None], (220, 30, 30), (240, 240, 240)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, picture.shape, dtype=np.uint8)
    scores = reward.score(np.stack([picture, noise]), ["a red circle on a white background"] * 2)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()
    assert scores[0] > scores[1]
