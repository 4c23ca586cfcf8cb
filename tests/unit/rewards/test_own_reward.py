"""A reward and an extractor of one's own, by import path: made as said, refused before anything is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ttsvar_ray.config.load import load_config
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.features.registry import build_extractor
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.job.weights import fingerprints
from ttsvar_ray.own_code import load_own
from ttsvar_ray.rewards.registry import build_reward

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
IMAGES = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)

BROKEN = """
class NoReward:
    def score(self, images, texts): ...

class Nameless:
    recipe = "none"
    def __init__(self, *, device): ...
    def score(self, images, texts): ...
    def preprocess(self, images): ...
    def encode_text(self, texts): ...
    def score_prepared(self, pixels, texts): ...

class Lost(Nameless):
    name = "lost"
    def __init__(self, *, device):
        raise RuntimeError("no such table")
    def extract(self, images): ...

class NoExtractor:
    def __init__(self, *, device): ...
"""


@pytest.fixture(autouse=True)
def _on_the_python_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_broken.py").write_text(BROKEN)
    yield
    for name in ("own_reward", "own_broken"):
        sys.modules.pop(name, None)


def settings(*overrides: str) -> list[str]:
    return ["model.device=cpu", "reward.name=own_reward:Greenness", *overrides]


def test_a_reward_of_ones_own_is_made_with_its_options() -> None:
    plain = build_reward("own_reward:Greenness")
    twice = build_reward("own_reward:Greenness", options={"weight": 40.0})
    assert plain.name == "greenness"
    np.testing.assert_allclose(twice.score(IMAGES, [""] * 3), 2 * plain.score(IMAGES, [""] * 3), rtol=1e-6)
    prepared = plain.score_prepared(plain.preprocess(IMAGES), plain.encode_text(["a"] * 3))
    np.testing.assert_array_equal(prepared, plain.score(IMAGES, ["a"] * 3))


def test_an_extractor_of_ones_own_is_made() -> None:
    assert build_extractor("own_reward:CoarseColours", backbone=None).extract(IMAGES).shape == (3, 12)


def test_its_source_is_part_of_what_a_run_is() -> None:
    own = settings("features.extractor=own_reward:CoarseColours", "strategy.plan=published")
    config = load_config(None, own, needs_files=False)
    digest = load_own("own_reward:Greenness", setting="x").source_digest
    found = fingerprints(resolve(config, needs_parts=True))
    assert found["code.reward.own_reward:Greenness"] == digest
    assert found["code.features.own_reward:CoarseColours"] == digest
    assert "weights.reward.shapes" not in found


def test_a_member_of_an_ensemble_may_be_ones_own() -> None:
    overrides = ["reward.name=ensemble", "reward.members={'own_reward:Greenness': null, constant: null}"]
    config = load_config(None, overrides, needs_files=False)
    assert "code.reward.own_reward:Greenness" in fingerprints(resolve(config, needs_parts=True))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["reward.name=own_broken:NoReward"], "reward.name: expected a reward with the methods preprocess,"),
        (["reward.name=own_broken:Missing"], "reward.name: module 'own_broken' has no 'Missing'"),
        (
            ["reward.options={depth: 3}"],
            "not take so: got an unexpected keyword argument 'depth'",
        ),
        (["reward.options={device: cuda}"], "reward.options: device is given already"),
        (["reward.path=/nowhere"], "expected the files of the weights at /nowhere, found nothing there"),
        (["reward.dtype=bfloat16"], "own_reward:Greenness is called with device, dtype as keywords"),
        (
            ["features.extractor=own_broken:NoExtractor", "strategy.plan=published"],
            "features.extractor: expected a feature extractor",
        ),
        (
            ["reward.name=ensemble", "reward.members={'own_broken:NoReward': null, constant: null}"],
            "reward.members: expected a reward with the methods",
        ),
    ],
)
def test_what_cannot_serve_is_refused_before_anything_is_loaded(overrides: list[str], said: str) -> None:
    config = load_config(None, settings(*overrides), needs_files=False)
    with pytest.raises(ConfigurationError) as refused:
        resolve(config, needs_parts=True)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["reward.name=constant", "reward.options={a: 1}"],
            "reward.options: only a reward of your own has them, and reward.name is 'constant'",
        ),
        (
            ["features.options={a: 1}"],
            "features.options: only an extractor of your own has them, and features.extractor is 'auto'",
        ),
    ],
)
def test_options_that_nobody_reads_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_config(None, overrides, needs_files=False)
    assert said in str(refused.value)


def test_a_reward_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"expected a name in own_broken:Nameless, got none"):
        build_reward("own_broken:Nameless")


def test_what_cannot_be_made_ends_the_job_and_not_one_worker_after_another() -> None:
    said = r"own_broken:Lost cannot be made \(RuntimeError: no such table \[own_broken\.py, line"
    with pytest.raises(ConfigurationError, match=f"reward.name: {said}"):
        build_reward("own_broken:Lost")
    with pytest.raises(ConfigurationError, match=f"features.extractor: {said}"):
        build_extractor("own_broken:Lost", backbone=None)


def test_options_change_what_a_run_is() -> None:
    digests = {
        load_config(None, settings(*more), needs_files=False).digest()
        for more in ([], ["reward.options={weight: 3.0}"], ["reward.options={weight: 4.0}"])
    }
    assert len(digests) == 3
