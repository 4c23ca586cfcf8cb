"""Pixels to files: PNG, WebP or JPEG bytes, encoded in a thread pool (Pillow releases the GIL)."""

from __future__ import annotations

import io
from concurrent.futures import Future, ThreadPoolExecutor
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
DEFAULT_PNG_LEVEL = 6
"""Of zlib, 0 to 9. A lower one is faster and larger: docs/performance.md has both."""

_WEBP_METHOD = 4
_FULL_CHROMA = 0


class ImageEncoder:
    """Encodes uint8 RGB images of one format and quality, off the calling thread.

    Equal pixels give equal bytes: no time stamp or machine name enters the file.
    """

    def __init__(
        self, *, image_format: str, quality: int, threads: int, png_level: int = DEFAULT_PNG_LEVEL
    ) -> None:
        """Check the settings and start the pool.

        Args:
            image_format: one of `IMAGE_FORMATS`. WebP is lossless at quality 100, and then written with the
                least effort: more of it costs many times the seconds for a few percent of the bytes.
            quality: 1 to 100; PNG has none and ignores it.
            threads: encoders at a time, at least 1.
            png_level: 0 to 9; other formats ignore it.
        """
        if image_format not in IMAGE_FORMATS:
            raise ConfigurationError(
                f"output.image_format: expected one of {', '.join(IMAGE_FORMATS)}, got {image_format!r}"
            )
        if not 1 <= quality <= 100:
            raise ConfigurationError(f"output.quality: expected 1 to 100, got {quality}")
        if not 0 <= png_level <= 9:
            raise ConfigurationError(f"output.png_level: expected 0 to 9, got {png_level}")
        self._format = image_format
        self._options: dict[str, Any] = {
            "png": {"compress_level": png_level},
            "webp": {"quality": quality, "method": _WEBP_METHOD}
            if quality < 100
            else {"lossless": True, "quality": 0, "method": 0},
            "jpeg": {"quality": quality, "subsampling": _FULL_CHROMA},
        }[image_format]
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="encode")

    def begin(self, image: UInt8Array) -> Future[FinalImage]:
        """Begin to encode uint8 RGB [height, width, 3], which nobody may change until it is done."""
        return self._pool.submit(self.encode, image)

    def encode(self, image: UInt8Array) -> FinalImage:
        """Return an image encoded, on this thread."""
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format=self._format, **self._options)
        height, width = image.shape[:2]
        return FinalImage.of_bytes(buffer.getvalue(), width=width, height=height, image_format=self._format)
