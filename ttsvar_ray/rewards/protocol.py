"""What the search asks of a reward, the least that one of your own must say, and several rewards as one."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ttsvar_ray.errors import RewardError
from ttsvar_ray.types import Float32Array, Int64Array, UInt8Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewardText:
    """One text as one reward reads it.

    Attributes:
        content: for that reward alone: token ids, or features.
        truncated: whether the reward's tokenizer cut the text, as its authors' does.
    """

    content: Any = None
    truncated: bool = False


class Reward(Protocol):
    """Scores images against texts. Higher is better. A list in, a list out, whatever its length.

    The three steps may be taken apart: pixels may be kept for another reward with an equal recipe,
    encoded texts for the prompt's next images. No row's score depends on the other rows.
    """

    name: str

    @property
    def recipe(self) -> Hashable:
        """How `preprocess` works: equal recipes make equal pixels."""
        ...

    def preprocess(self, images: UInt8Array) -> Any:
        """Return the pixels that the network sees, one row per image; `images` as in `score`."""
        ...

    def encode_text(self, texts: Sequence[str]) -> list[RewardText]:
        """Return each text as the network reads it; a text seen before is not encoded again."""
        ...

    def score_prepared(self, pixels: Any, texts: Sequence[RewardText]) -> Float32Array:
        """Return float32 [n], from what `preprocess` and `encode_text` made of n images and n texts."""
        ...

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n]; `images` uint8 RGB [n, height, width, 3], `texts` one per image."""
        ...


class MapReward(Protocol):
    """Scores feature maps against texts, on the scale of the reward that scores the images. Higher is better.

    One of your own is a class that is called without arguments. No row's score depends on the other rows.
    """

    def score_maps(self, maps: Any, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n] for maps, a float32 tensor [n, d, H, W] on the model's device, and n texts."""
        ...


class PlainReward(ABC):
    """A `Reward` that looks at the images as they are and keeps nothing between calls: only `score` is left.

    Attributes:
        name: written to the output rows.
    """

    name: str
    recipe: Hashable = "images as they are"

    def preprocess(self, images: UInt8Array) -> UInt8Array:
        """Return the images."""
        return images

    def encode_text(self, texts: Sequence[str]) -> list[RewardText]:
        """Return the texts."""
        return [RewardText(content=text) for text in texts]

    def score_prepared(self, pixels: UInt8Array, texts: Sequence[RewardText]) -> Float32Array:
        """Return float32 [n] scores of n images and n texts."""
        # A copy: one that computes in place would change what is written, and what other members see.
        return self.score(copy.deepcopy(pixels), [text.content for text in texts])

    @abstractmethod
    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n]; `images` uint8 RGB [n, height, width, 3], `texts` one per image."""


class ConstantReward(PlainReward):
    """Scores every image 0: for timing, and to show what search does without a reward."""

    name = "constant"

    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n] zeros."""
        if len(images) != len(texts):
            raise ValueError(f"texts: expected one per image ({len(images)}), got {len(texts)}")
        return np.zeros(len(images), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EnsembleScores:
    """The scores of n images.

    Attributes:
        rewards: float32 [n, members]; may be NaN or infinite.
        cut_texts: int64 [n] members whose tokenizer cut the image's text.
    """

    rewards: Float32Array
    cut_texts: Int64Array


class RewardEnsemble:
    """The rewards of one job's images: asks each member in turn; members with equal recipes share the pixels.

    Scores are only gathered here. What an ensemble makes of them depends on the whole population, which no
    worker sees (`search.potentials`).

    Attributes:
        name: of the whole, as output rows have it.
        names: of the members, in the order of the scores.
    """

    def __init__(self, members: Sequence[Reward], *, name: str | None = None) -> None:
        """Bind the members.

        Args:
            members: at least one, in the order of the scores.
            name: what output rows call the whole; by default a single member's own name.
        """
        if not members or (name is None and len(members) > 1):
            raise ValueError(f"ensemble: expected one member, or several and a name, got {len(members)}")
        self.members = tuple(members)
        self.names = tuple(member.name for member in members)
        self.name = members[0].name if name is None else name

    def score(self, images: UInt8Array, texts: Sequence[str]) -> EnsembleScores:
        """Score uint8 RGB [n, height, width, 3] against n texts."""
        if len(images) != len(texts):
            raise ValueError(f"texts: expected one per image ({len(images)}), got {len(texts)}")
        pixels: dict[Hashable, Any] = {}
        rewards = np.empty((len(images), len(self.names)), dtype=np.float32)
        cut_texts = np.zeros(len(images), dtype=np.int64)
        for column, member in enumerate(self.members):
            if member.recipe not in pixels:
                pixels[member.recipe] = member.preprocess(images)
            encoded = member.encode_text(texts)
            scores = np.asarray(member.score_prepared(pixels[member.recipe], encoded))
            # One score for all would pass unseen.
            if scores.shape != (len(images),) or scores.dtype.kind not in "fiub":
                raise RewardError(
                    f"reward {member.name}: expected one score for each of {len(images)} images, got shape "
                    f"{scores.shape} of {scores.dtype}"
                )
            rewards[:, column] = scores
            cut_texts += np.array([text.truncated for text in encoded], dtype=np.int64)
        return EnsembleScores(rewards=rewards, cut_texts=cut_texts)
