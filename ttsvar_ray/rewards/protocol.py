"""What the search asks of a reward, and the least that one of your own must say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ttsvar_ray.types import Float32Array, UInt8Array


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
        return self.score(pixels, [text.content for text in texts])

    @abstractmethod
    def score(self, images: UInt8Array, texts: Sequence[str]) -> Float32Array:
        """Return float32 [n]; `images` uint8 RGB [n, height, width, 3], `texts` one per image."""
