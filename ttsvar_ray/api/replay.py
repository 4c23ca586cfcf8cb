"""What a trajectory was at each of its scales, rebuilt from its bits: kept or dropped, it is drawn again.

Comes in: a prompt's text and packed bits, of an image (`output.bits`) or of a selection's population
(`output.trace: bits`). Goes out: pictures. Nothing is sampled: bits decide the picture, so the last one of an
image is the image of the run, to the byte where the device rounds alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ttsvar_ray.engine.encode import ImageEncoder
from ttsvar_ray.engine.rows import unpack_rows
from ttsvar_ray.errors import OutputError
from ttsvar_ray.job.build import build_model
from ttsvar_ray.job.resolved import ResolvedJob, image_settings
from ttsvar_ray.models.protocol import DrawsBits, NextScaleModel
from ttsvar_ray.results import PackedBits
from ttsvar_ray.types import UInt8Array

_ROWS = 8
"""Trajectories drawn at a time."""


@dataclass(frozen=True, slots=True)
class Replayer:
    """Draws bits of one model."""

    model: NextScaleModel

    @classmethod
    def of(cls, job: ResolvedJob) -> Replayer:
        """Load the model of a job.

        Raises:
            ConfigurationError, CheckpointError: a model that cannot be loaded.
        """
        return cls(build_model(job))

    def scales(self, text: str, bits: PackedBits) -> list[UInt8Array]:
        """Return what is decoded after each finished scale, uint8 RGB [height, width, 3].

        Args:
            bits: one entry a finished scale, at least one.

        Raises:
            OutputError: bits of another model.
        """
        unpacked = self._unpacked([bits])
        if isinstance(self.model, DrawsBits):
            states = (self.model.drawn(unpacked[: end + 1]) for end in range(len(unpacked)))
            return [self.model.decode(state)[0] for state in states]
        images = []
        state = self._start(text, 1)
        for scale in unpacked:
            state = self.model.replay(state, [scale])
            images.append(self.model.decode(state)[0])
        return images

    def latest(self, text: str, population: Sequence[PackedBits]) -> list[UInt8Array]:
        """Return what is decoded of each trajectory after its last scale.

        Args:
            population: trajectories of equally many scales, at least one each.

        Raises:
            OutputError: bits of another model.
        """
        images: list[UInt8Array] = []
        for first in range(0, len(population), _ROWS):
            some = population[first : first + _ROWS]
            bits = self._unpacked(some)
            if isinstance(self.model, DrawsBits):
                state = self.model.drawn(bits)
            else:
                state = self.model.replay(self._start(text, len(some)), bits)
            images.extend(self.model.decode(state))
        return images

    def _start(self, text: str, rows: int) -> Any:
        return self.model.start(self.model.encode_text([text]), [0] * rows)

    def _unpacked(self, population: Sequence[PackedBits]) -> Any:
        model = self.model
        try:
            return unpack_rows(
                [tuple(bits) for bits in population],
                scale_schedule=model.scale_schedule,
                bits_per_token=model.bits_per_token,
            )
        except (ValueError, IndexError) as error:
            raise OutputError(f"bits: expected those of {model.name}, got others ({error})") from None


def is_same_file(job: ResolvedJob, image: UInt8Array, encoded: bytes) -> bool:
    """Whether a picture, written as the job writes its images, gives exactly these bytes."""
    image_format, quality, png_level = image_settings(job.config)
    encoder = ImageEncoder(image_format=image_format, quality=quality, threads=1, png_level=png_level)
    return bool(encoder.encode(image).payload == encoded)
