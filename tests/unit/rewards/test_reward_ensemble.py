"""An ensemble gathers its members' scores, and prepares pixels once for all who want the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from ttsvar_ray.errors import RewardError
from ttsvar_ray.rewards.protocol import ConstantReward, PlainReward, RewardEnsemble, RewardText
from ttsvar_ray.types import Float32Array, UInt8Array


class Recorder(ConstantReward):
    """Scores a channel's mean; cuts texts longer than `longest`."""

    def __init__(self, name: str, *, recipe: str, channel: int, longest: int = 100) -> None:
        self.name = name  # type: ignore[misc]
        self.recipe = recipe  # type: ignore[misc]
        self.prepared = 0
        self._channel = channel
        self._longest = longest

    def preprocess(self, images: UInt8Array) -> UInt8Array:
        self.prepared += 1
        return images

    def encode_text(self, texts: Sequence[str]) -> list[RewardText]:
        return [RewardText(truncated=len(text) > self._longest) for text in texts]

    def score_prepared(self, pixels: UInt8Array, texts: Sequence[RewardText]) -> Float32Array:
        means: Float32Array = pixels[..., self._channel].mean(axis=(1, 2)).astype(np.float32)
        return means


class InPlace(PlainReward):
    """Computes where the images are, and says what it is told."""

    name = "in place"

    def __init__(self, says: object) -> None:
        self._says = says

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        images[...] = 0
        return self._says  # type: ignore[return-value]


class OneForAll(Recorder):
    """Scores all images at once."""

    def score_prepared(self, pixels: UInt8Array, texts: Sequence[RewardText]) -> Float32Array:
        return super().score_prepared(pixels, texts)[:1]


IMAGES = np.random.default_rng(2).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)


def test_scores_stand_in_the_members_order_and_cut_texts_are_counted() -> None:
    red = Recorder("red", recipe="same", channel=0, longest=3)
    blue = Recorder("blue", recipe="same", channel=2, longest=5)
    green = Recorder("green", recipe="other", channel=1)
    scores = RewardEnsemble([blue, red, green], name="all").score(IMAGES, ["abc", "abcd", "abcdef"])
    expected = IMAGES.mean(axis=(1, 2))[:, [2, 0, 1]]
    np.testing.assert_allclose(scores.rewards, expected, rtol=1e-6)
    assert scores.cut_texts.tolist() == [0, 1, 2]
    assert (red.prepared + blue.prepared, green.prepared) == (1, 1)


def test_a_single_member_names_the_ensemble_and_several_need_a_name() -> None:
    assert RewardEnsemble([ConstantReward()]).name == "constant"
    assert RewardEnsemble([ConstantReward()]).score(IMAGES, ["a", "b", "c"]).rewards.tolist() == [[0.0]] * 3
    for members in ([], [ConstantReward(), ConstantReward()]):
        with pytest.raises(ValueError, match="expected one member, or several and a name"):
            RewardEnsemble(members)
    with pytest.raises(
        ValueError, match=r"reward red: expected one score for each of 3 images, got shape \(1,\)"
    ):
        RewardEnsemble([OneForAll("red", recipe="same", channel=0)]).score(IMAGES, ["a", "b", "c"])
    with pytest.raises(ValueError, match="one per image"):
        RewardEnsemble([ConstantReward()]).score(IMAGES, ["a"])


def test_a_reward_that_computes_in_place_changes_no_image() -> None:
    images = IMAGES.copy()
    members = [InPlace([1, 2, 3]), Recorder("red", recipe="images as they are", channel=0)]
    scores = RewardEnsemble(members, name="all").score(images, ["a", "b", "c"])
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_allclose(scores.rewards[:, 1], IMAGES.mean(axis=(1, 2))[:, 0], rtol=1e-6)


class Tensors(InPlace):
    """Prepares tensors, which arrays' methods do not copy."""

    def preprocess(self, images: UInt8Array) -> Any:
        return torch.from_numpy(images)


def test_what_a_plain_reward_prepares_itself_is_copied_too() -> None:
    images = IMAGES.copy()
    assert RewardEnsemble([Tensors([1, 2, 3])]).score(images, ["a", "b", "c"]).rewards[:, 0].tolist() == [
        1,
        2,
        3,
    ]
    np.testing.assert_array_equal(images, IMAGES)


@pytest.mark.parametrize("says", [["a", "b", "c"], None, [[1], [2], [3]]])
def test_what_is_no_score_is_refused_by_the_name_of_the_reward(says: object) -> None:
    with pytest.raises(RewardError, match="reward in place: expected one score for each of 3 images, got"):
        RewardEnsemble([InPlace(says)]).score(IMAGES.copy(), ["a", "b", "c"])
