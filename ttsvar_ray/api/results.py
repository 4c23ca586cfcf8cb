"""What a search found for one prompt, as Python wants it: pictures, rewards, the tree."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttsvar_ray.api.tree import Painter, SearchTree
from ttsvar_ray.dataset.rows import picture_of
from ttsvar_ray.errors import TtsVarError
from ttsvar_ray.results import ResultImage, SelectionRecord
from ttsvar_ray.types import Prompt, UInt8Array

if TYPE_CHECKING:
    from PIL import Image

_THUMBNAIL_PIXELS = 192


class NoImageError(TtsVarError):
    """A picture was asked of a prompt that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundImage:
    """One finished image.

    Attributes:
        rank: 0 = best reward.
        reward: of the finished image.
        reward_history: of its lineage at each scored scale; NaN where none was taken.
        lineage: its ancestor's slot in each population, its own slot last.
        bits: of all scales, packed, one bytes object a scale; empty where a data set keeps none.
        encoded: the image file.
        image_format: "png", "jpeg" or "webp".
        round_index: of an adaptive search.
    """

    rank: int
    reward: float
    reward_history: tuple[float, ...]
    lineage: tuple[int, ...]
    bits: tuple[bytes, ...] = field(repr=False)
    encoded: bytes = field(repr=False)
    image_format: str
    round_index: int = 0

    @classmethod
    def of(cls, image: ResultImage) -> FoundImage:
        """Return an engine's image, whose payload is the file."""
        return cls(
            rank=image.rank,
            reward=image.reward,
            reward_history=image.reward_history,
            lineage=image.lineage,
            bits=image.bits,
            encoded=image.image.payload,
            image_format=image.image.image_format,
            round_index=image.round_index,
        )

    @property
    def image(self) -> Image.Image:
        """The picture, decoded."""
        return picture_of(self.encoded)

    @property
    def pixels(self) -> UInt8Array:
        """The picture, uint8 RGB [height, width, 3]."""
        return np.asarray(self.image)

    def save(self, path: str | Path) -> None:
        """Write the image file as it is; its bytes are `encoded`."""
        Path(path).write_bytes(self.encoded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one prompt.

    Attributes:
        prompt: its text.
        prompt_id: as it names the random streams; by default a digest of the text, as in a prompt file.
        images: kept images by rank; empty where the prompt failed.
        tree: of its search; None where it failed, or where nothing was selected.
        error: why there is no image; "" where there is one.
        prompt_used: what the model read: the prompt, or what `prompts.rewrite` made of it.
        columns: what else the prompt came with.
        cost_images: what was spent on it, in images drawn without a search; None where nobody counted.
        trace: the selections of all rounds, with the bits of their populations where they were kept.
    """

    prompt: str
    prompt_id: str
    images: tuple[FoundImage, ...]
    tree: SearchTree | None = field(repr=False)
    prompt_used: str = ""
    error: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    cost_images: float | None = None
    trace: tuple[SelectionRecord, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        images: Sequence[ResultImage],
        trace: Sequence[SelectionRecord],
        *,
        painter: Painter | None = None,
    ) -> Result:
        """Return a finished prompt, whose tree the painter may draw."""
        return cls(
            prompt=prompt.text,
            prompt_used=prompt.model_text,
            prompt_id=prompt.prompt_id,
            columns=prompt.columns,
            images=tuple(FoundImage.of(image) for image in images),
            tree=replace(SearchTree.of(trace, images), painter=painter) if images else None,
            trace=tuple(trace),
        )

    @property
    def best(self) -> FoundImage:
        """The image with the best reward.

        Raises:
            NoImageError: the prompt failed.
        """
        if not self.images:
            raise NoImageError(f"{self.prompt!r} has no image: {self.error}")
        return self.images[0]

    @property
    def image(self) -> Image.Image:
        """The best picture."""
        return self.best.image

    @property
    def reward(self) -> float:
        """Of the best image."""
        return self.best.reward

    @property
    def lineage(self) -> tuple[int, ...]:
        """Of the best image."""
        return self.best.lineage

    def _repr_html_(self) -> str:
        text = html.escape(self.prompt)
        if not self.images:
            return f"<p>{text}<br><b>no image</b>: {html.escape(self.error)}</p>"
        cells = "".join(
            f'<figure style="display:inline-block;margin:4px"><img alt="{text}" src="{_data_uri(image)}">'
            f"<figcaption>{image.reward:.4f}</figcaption></figure>"
            for image in self.images
        )
        tree = "" if self.tree is None else self.tree.svg()
        return f"<div><p>{text}</p>{cells}<div>{tree}</div></div>"


def _data_uri(found: FoundImage) -> str:
    picture = found.image
    picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
