"""Pixels to files: PNG, WebP or JPEG bytes, encoded in a thread pool (Pillow releases the GIL)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.results import FinalImage
from ttsvar_ray.types import UInt8Array

IMAGE_FORMATS = ("png", "webp", "jpeg")

DEFAULT_QUALITY = 95
"""Of webp and jpeg."""
ENCODE_THREADS = 2
"""Image files that an engine writes at a time."""

_PNG_LEVEL = 6
_WEBP_METHOD = 4
_FULL_CHROMA = 0


class ImageEncoder:
    """Encodes uint8 RGB images of one format and quality.

    Equal pixels give equal bytes: no time stamp or machine name enters the file.
    """

    def __init__(self, *, image_format: str, quality: int, threads: int) -> None:
        """Check the settings and start the pool.

        Args:
            image_format: one of `IMAGE_FORMATS`. WebP is lossless at quality 100.
            quality: 1 to 100; PNG has none and ignores it.
            threads: encoders at a time, at least 1.
        """
        if image_format not in IMAGE_FORMATS:
            raise ConfigurationError(
                f"output.image_format: expected one of {', '.join(IMAGE_FORMATS)}, got {image_format!r}"
            )
        if not 1 <= quality <= 100:
            raise ConfigurationError(f"output.quality: expected 1 to 100, got {quality}")
        self._format = image_format
        self._options: dict[str, Any] = {
            "png": {"compress_level": _PNG_LEVEL},
            "webp": {"quality": quality, "lossless": quality == 100, "method": _WEBP_METHOD},
            "jpeg": {"quality": quality, "subsampling": _FULL_CHROMA},
        }[image_format]
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="encode")

    def encode(self, images: UInt8Array | Sequence[UInt8Array]) -> list[FinalImage]:
        """Return one encoded image for each uint8 RGB [height, width, 3] of `images`."""
        return list(self._pool.map(self._encode_one, images))

    def _encode_one(self, image: UInt8Array) -> FinalImage:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format=self._format, **self._options)
        height, width = image.shape[:2]
        return FinalImage.of_bytes(buffer.getvalue(), width=width, height=height, image_format=self._format)
