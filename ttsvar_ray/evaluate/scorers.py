"""What looks at finished images and says something of each: rewards, hashes, safety, a benchmark's rules.

A `ScorerSpec` names one and travels to whoever runs it; `build` loads it there. A scorer sees a few images of
one part at a time and knows nothing of files.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.features.registry import FeatureExtractor, extracted
from ttsvar_ray.rewards.protocol import Reward, RewardEnsemble
from ttsvar_ray.types import UInt8Array

HASH_SIDE = 8
"""A hash has as many bits as this squared."""


Images = Sequence[UInt8Array]
"""RGB [height, width, 3] each."""
Rows = Sequence[Mapping[str, Any]]
"""Of the images, as the output has them."""
Values = Mapping[str, Sequence[Any]]
"""A value per image and column."""


class ScorerKind(str, enum.Enum):
    """How a scorer looks."""

    REWARD = "reward"
    HASH = "hash"
    EMBEDDING = "embedding"
    SAFETY = "safety"
    GENEVAL = "geneval"
    QUESTIONS = "questions"


class Scorer(Protocol):
    """Says something of images; no image's values depend on its neighbours.

    Attributes:
        columns: name and type of what it says.
    """

    columns: pa.Schema

    def score(self, images: Images, rows: Rows) -> Values:
        """Return what it says of images."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerSpec:
    """Which scorer, with everything that it is built of.

    Attributes:
        kind: how it looks.
        name: of a reward, a feature extractor or a benchmark, or of the table where it is the only one of
            its kind.
        clip: of GenEval, the folder of CLIP.
        questions: of a benchmark that has such, their file.
        dtype, preprocessing: of a reward.
        options: keywords of a reward of one's own.
        label: of a safety model, the class that is not safe, "" is its last one; of a benchmark, a category.
        fingerprints: what tells its code, weights and questions from others.
    """

    kind: ScorerKind
    name: str
    path: Path | None = None
    clip: Path | None = None
    questions: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    preprocessing: str = "published"
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    @property
    def table(self) -> str:
        """Name of its table and of its main column."""
        if self.kind is ScorerKind.QUESTIONS:
            return column_name(f"{self.name} {self.label}")
        return column_name(f"features_{self.name}" if self.kind is ScorerKind.EMBEDDING else self.name)

    @property
    def basis(self) -> dict[str, Any]:
        """What its values rest on, as JSON; where its files lie and which device it used do not count."""
        return {
            "kind": self.kind.value,
            "name": self.name,
            "dtype": self.dtype,
            "preprocessing": self.preprocessing,
            "options": dict(self.options),
            "label": self.label,
            "fingerprints": dict(self.fingerprints),
        }

    def build(self) -> Scorer:
        """Load it.

        Raises:
            ConfigurationError: a name that is none.
            CheckpointError: weights that cannot be used.
        """
        if self.kind is ScorerKind.HASH:
            return _HashScorer(self.table)
        if self.kind is ScorerKind.SAFETY:
            assert self.path is not None
            return _SafetyScorer(self.path, table=self.table, label=self.label, device=self.device)
        if self.kind in (ScorerKind.GENEVAL, ScorerKind.QUESTIONS):
            from ttsvar_ray.evaluate.benchmark_scorers import build_benchmark

            return build_benchmark(self)
        if self.kind is ScorerKind.EMBEDDING:
            from ttsvar_ray.features.registry import build_extractor

            extractor = build_extractor(
                self.name,
                backbone=self.path,
                device=self.device,
                preprocessing=self.preprocessing,
                dtype=self.dtype,
            )
            return _EmbeddingScorer(extractor, table=self.table)
        from ttsvar_ray.rewards.registry import build_reward

        reward = build_reward(
            self.name,
            path=self.path,
            device=self.device,
            preprocessing=self.preprocessing,
            dtype=self.dtype,
            options=self.options,
        )
        return _RewardScorer(reward, table=self.table)


def column_name(name: str) -> str:
    """Return a name that filter expressions can say: `hps-v2.1` is `hps_v2_1`, `module:Name` is `Name`."""
    own = name.rpartition(":")[2]
    return re.sub(r"\W", "_", own) or "score"


class _RewardScorer:
    """The score of a reward."""

    def __init__(self, reward: Reward, *, table: str) -> None:
        self._reward, self._table = RewardEnsemble([reward]), table
        self.columns = pa.schema([(table, pa.float32())])

    def score(self, images: Images, rows: Rows) -> Values:
        """Return float32 scores of the images against their prompts."""
        scores = np.empty(len(images), dtype=np.float32)
        for places in _by_shape(images):
            texts = [str(rows[place]["prompt"]) for place in places]
            alike = np.stack([images[place] for place in places])
            scores[places] = self._reward.score(alike, texts).rewards[:, 0]
        return {self._table: scores.tolist()}


class _EmbeddingScorer:
    """The features of an extractor; of patches, their mean."""

    def __init__(self, extractor: FeatureExtractor, *, table: str) -> None:
        self._extractor, self._table = extractor, table
        self.columns = pa.schema([(table, pa.list_(pa.float32()))])

    def score(self, images: Images, rows: Rows) -> Values:
        """Return float32 features an image."""
        found: list[Any] = [None] * len(images)
        for places in _by_shape(images):
            features = extracted(self._extractor, np.stack([images[place] for place in places]))
            features = features.mean(axis=1) if features.ndim == 3 else features
            for place, own in zip(places, features, strict=True):
                found[place] = own
        return {self._table: found}


def _by_shape(images: Images) -> list[list[int]]:
    """Return the places of images that are equally large, together."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        shapes.setdefault(image.shape, []).append(place)
    return list(shapes.values())


class _HashScorer:
    """A perceptual hash: whether each cell of a small grey picture is brighter than its left neighbour."""

    def __init__(self, table: str) -> None:
        self._table = table
        self.columns = pa.schema([(table, pa.uint64())])

    def score(self, images: Images, rows: Rows) -> Values:
        """Return a 64-bit number an image; pictures that look alike differ in few bits."""
        return {self._table: [difference_hash(image) for image in images]}


def difference_hash(image: UInt8Array) -> int:
    """Return the hash of a uint8 RGB image [height, width, 3]."""
    small = Image.fromarray(image).convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BILINEAR)
    grey = np.asarray(small, dtype=np.int16)
    bits = np.packbits((grey[:, 1:] > grey[:, :-1]).reshape(-1))
    return int.from_bytes(bits.tobytes(), "big")


class _SafetyScorer:
    """An image classifier's verdict, as a tag: no row is dropped for it.

    Args:
        path: folder of a transformers image classifier.
        table: prefix of the columns.
        label: the class that is not safe; "" is the last one.
    """

    def __init__(self, path: Path, *, table: str, label: str, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        from ttsvar_ray.vision.checkpoints import from_folder

        try:
            self._processor = from_folder(AutoImageProcessor, path)
            model = from_folder(AutoModelForImageClassification, path, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: expected an image classifier of transformers ({str(error).splitlines()[0]})"
            ) from None
        names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        if label and label not in names:
            raise CheckpointError(f"{path}: expected one of the classes {', '.join(names)}, got {label!r}")
        self._names, self._label = names, names.index(label) if label else len(names) - 1
        self._model, self._device = model.to(device).eval(), device
        self._table = table
        self.columns = pa.schema([(table, pa.float32()), (f"{table}_tag", pa.string())])

    def score(self, images: Images, rows: Rows) -> Values:
        """Return the probability of the class that is not safe, and the likeliest class."""
        import torch

        scores, tags = [], []
        for image in images:  # one at a time: a score never depends on a neighbour
            pixels = self._processor(images=image, return_tensors="pt").to(self._device)
            with torch.inference_mode():
                shares = self._model(**pixels).logits[0].float().softmax(dim=-1)
            scores.append(float(shares[self._label]))
            tags.append(self._names[int(shares.argmax())])
        return {self._table: scores, f"{self._table}_tag": tags}
