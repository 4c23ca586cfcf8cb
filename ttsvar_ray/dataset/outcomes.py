"""What a finished or given-up prompt must have to become rows.

Structural types: the coordinator's results fit them, and this package needs to know no coordinator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ttsvar_ray.types import Prompt


class EncodedImage(Protocol):
    """An image in a file format; `payload` is its bytes, or what the writer's `resolve` turns into bytes."""

    @property
    def payload(self) -> Any: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def image_format(self) -> str: ...


class KeptImage(Protocol):
    """One image of a finished prompt; rank 0 has the best reward."""

    @property
    def rank(self) -> int: ...
    @property
    def image(self) -> EncodedImage: ...
    @property
    def reward(self) -> float: ...
    @property
    def reward_history(self) -> Sequence[float]: ...
    @property
    def member_rewards(self) -> Sequence[float]: ...
    @property
    def lineage(self) -> Sequence[int]: ...
    @property
    def bits(self) -> Sequence[bytes]: ...


class TracedSelection(Protocol):
    """What one selection saw and decided."""

    @property
    def scale_index(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def ancestor_index(self) -> Sequence[int]: ...
    @property
    def rewards(self) -> Sequence[float]: ...
    @property
    def log_weights(self) -> Sequence[float]: ...
    @property
    def ess(self) -> float: ...
    @property
    def labels(self) -> Sequence[int]: ...
    @property
    def placement(self) -> Sequence[str]: ...
    @property
    def moved(self) -> int: ...
    @property
    def reason(self) -> str: ...


class FinishedPrompt(Protocol):
    """A prompt that is done."""

    @property
    def prompt(self) -> Prompt: ...
    @property
    def images(self) -> Sequence[KeptImage]: ...
    @property
    def trace(self) -> Sequence[TracedSelection]: ...
    @property
    def counters(self) -> Mapping[str, int]:
        """What was counted on the way. Rows hold those that depend on prompt and seed alone:
        `reward_texts_truncated` (members of the reward that cut this prompt's text) and
        `rewards_not_finite` (scores that the policy "worst" replaced, at all scored scales)."""
        ...


class GivenUpPrompt(Protocol):
    """A prompt that failed for good."""

    @property
    def prompt(self) -> Prompt: ...
    @property
    def attempts(self) -> int: ...
    @property
    def errors(self) -> Sequence[str]: ...
