"""Values that cross layers.

Here are the words that every room shares: a `Prompt` and its `key`, the schedule of scales, the closed
choices of the search, and the array types. What a run gives back is in `results`, what travels between
coordinator and workers in `coordination.messages`. No behaviour beyond a value's own validity, and no heavy
imports: everything else rests on this file, and it rests on nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]

ScaleSchedule = tuple[tuple[int, int], ...]
"""(height, width) in tokens of each scale, coarse to fine."""


class PotentialKind(str, enum.Enum):
    """How a reward history becomes a potential (TTS-VAR section 3.3)."""

    VALUE = "value"
    DIFF = "diff"
    MAX = "max"
    SUM = "sum"


class Normalisation(str, enum.Enum):
    """What a potential becomes within its population, before lambda multiplies it (`search.potentials`)."""

    NONE = "none"
    Z_SCORE = "z-score"
    RANK = "rank"


class RewardCombination(str, enum.Enum):
    """How the scores of several rewards become one, over a whole population (`search.potentials`)."""

    SOFTMAX = "softmax"
    Z_SCORE = "z-score"


WORST_REWARD = float(np.finfo(np.float32).min)
"""What a reward that is NaN or infinite becomes under the policy "worst": the lowest finite float32.
Finite, so that potentials stay numbers; so low that no real reward is beaten by it."""


class ResamplingScheme(str, enum.Enum):
    """How survivors are drawn from normalised weights."""

    MULTINOMIAL = "multinomial"
    SYSTEMATIC = "systematic"
    STRATIFIED = "stratified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt of the prompt set.

    Attributes:
        row: 0-based position in the prompt set; output is ordered by it.
        prompt_id: stable name (a digest of the text, or the caller's own id column).
        ordinal: 0 for the first prompt with this id, 1 for the second, ...; keeps duplicates apart.
        text: what the image should show; rewards judge by it.
        rewritten: what the model reads in its place; None: the text.
        columns: the caller's other columns, carried through to the output.
    """

    row: int
    prompt_id: str
    ordinal: int
    text: str
    rewritten: str | None = None
    columns: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def model_text(self) -> str:
        """What the model reads."""
        return self.text if self.rewritten is None else self.rewritten

    @property
    def key(self) -> str:
        """Unique name of this prompt within a run: names its random streams."""
        return f"{self.prompt_id}#{self.ordinal}"


class Precision(str, enum.Enum):
    """The numbers that a network which looks at images computes in.

    FLOAT32: as published, and the only one whose scores are the published ones.
    TF32: float32 weights and sums; on a GPU the factors of products are rounded to 10 binary places. On
        other devices the same as FLOAT32.
    FLOAT16, BFLOAT16: weights and activations, with 10 and 7 binary places.
    """

    FLOAT32 = "float32"
    TF32 = "tf32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def element_bytes(self) -> int:
        """Bytes of one number."""
        return 4 if self in (Precision.FLOAT32, Precision.TF32) else 2


class Preprocessing(str, enum.Enum):
    """How an image becomes the pixels that a reward or an extractor sees.

    PUBLISHED: as the network's authors did it, image by image on the CPU (PIL for most): scores and features
        are those of the published code.
    TENSOR: resized by torch, a batch at a time, on the network's own device: faster, and off by a level of
        255 here and there; docs/features.md says how much.
    """

    PUBLISHED = "published"
    TENSOR = "tensor"
