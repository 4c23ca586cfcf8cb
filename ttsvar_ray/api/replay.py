"""What a finished image was at each of its scales, rebuilt from its bits.

Comes in: a prompt's text and the packed bits of one trajectory. Goes out: a picture per scale. Nothing is
drawn again: bits decide the picture, so the last one is the image of the run, to the byte where the device
rounds alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from ttsvar_ray.engine.encode import ImageEncoder
from ttsvar_ray.engine.rows import unpack_rows
from ttsvar_ray.errors import OutputError
from ttsvar_ray.job.build import build_model, image_settings
from ttsvar_ray.job.resolved import ResolvedJob
from ttsvar_ray.types import UInt8Array


def replay(job: ResolvedJob, text: str, bits: Sequence[bytes]) -> list[UInt8Array]:
    """Return what is decoded after each finished scale, uint8 RGB [height, width, 3].

    Args:
        job: whose model drew the bits.
        text: of the prompt.
        bits: one entry a finished scale, as `FoundImage.bits` has them.

    Raises:
        OutputError: bits of another model.
        ConfigurationError, CheckpointError: a model that cannot be loaded.
    """
    model = build_model(job)
    try:
        scales = unpack_rows(
            [tuple(bits)], scale_schedule=model.scale_schedule, bits_per_token=model.bits_per_token
        )
    except (ValueError, IndexError) as error:
        raise OutputError(f"bits: expected those of {model.name}, got others ({error})") from None
    state = model.start(model.encode_text([text]), [0])
    images = []
    for scale in scales:
        state = model.replay(state, [scale])
        images.append(model.decode(state)[0])
    return images


def is_same_file(job: ResolvedJob, image: UInt8Array, encoded: bytes) -> bool:
    """Whether a picture, written as the job writes its images, gives exactly these bytes."""
    image_format, quality, png_level = image_settings(job)
    encoder = ImageEncoder(image_format=image_format, quality=quality, threads=1, png_level=png_level)
    return bool(encoder.encode(image).payload == encoded)
