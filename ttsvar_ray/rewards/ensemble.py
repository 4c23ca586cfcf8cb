"""The rewards of one job's images: one, or the members of an ensemble.

Here their scores are only gathered. What an ensemble makes of them depends on the whole population, which no
worker sees (`search.ensemble`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttsvar_ray.rewards.protocol import Reward
from ttsvar_ray.types import Float32Array, Int64Array, UInt8Array


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
    """Asks each member in turn; members with equal recipes share the pixels."""

    def __init__(self, members: Sequence[Reward], *, name: str | None = None) -> None:
        """Bind the members.

        Args:
            members: at least one, in the order of the scores.
            name: what output rows call the whole; by default a single member's own name.
        """
        if not members or (name is None and len(members) > 1):
            raise ValueError(f"ensemble: expected one member, or several and a name, got {len(members)}")
        self.members = tuple(members)
        self.name = members[0].name if name is None else name

    def score(self, images: UInt8Array, texts: Sequence[str]) -> EnsembleScores:
        """Score uint8 RGB [n, height, width, 3] against n texts."""
        if len(images) != len(texts):
            raise ValueError(f"texts: expected one per image ({len(images)}), got {len(texts)}")
        pixels: dict[Hashable, Any] = {}
        rewards = np.empty((len(images), len(self.members)), dtype=np.float32)
        cut_texts = np.zeros(len(images), dtype=np.int64)
        for column, member in enumerate(self.members):
            if member.recipe not in pixels:
                pixels[member.recipe] = member.preprocess(images)
            encoded = member.encode_text(texts)
            scores = np.asarray(member.score_prepared(pixels[member.recipe], encoded))
            if scores.shape != (len(images),):  # one score for all would pass unseen
                raise ValueError(
                    f"reward {member.name}: expected one score for each of {len(images)} images, got shape "
                    f"{scores.shape}"
                )
            rewards[:, column] = scores
            cut_texts += np.array([text.truncated for text in encoded], dtype=np.int64)
        return EnsembleScores(rewards=rewards, cut_texts=cut_texts)
