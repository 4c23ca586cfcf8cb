"""Image files: bytes against seconds, for every way the engine can write one and a few that it cannot.

    python -m benchmarks.image_files --output benchmarks/results/image_files.json

Seconds are CPU seconds of one thread. Photo-like images have the spectrum of photographs (amplitudes that
fall with the frequency), edges, and a little grain in every channel; noise is the worst case of every codec.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from benchmarks.machine import record
from ttsvar_ray.types import UInt8Array

SIDE = 1024
IMAGES, REPEATS = 3, 2
GRAIN = 1.5
"""Standard deviation, in levels of 255."""

WAYS: dict[str, dict[str, Any]] = {
    **{f"png level {level}": {"format": "png", "compress_level": level} for level in (0, 1, 2, 3, 6, 9)},
    "webp lossless, least effort (quality 100)": {
        "format": "webp",
        "lossless": True,
        "quality": 0,
        "method": 0,
    },
    "webp lossless, most effort": {"format": "webp", "lossless": True, "quality": 100, "method": 4},
    "webp quality 95": {"format": "webp", "quality": 95, "method": 4},
    "jpeg quality 95": {"format": "jpeg", "quality": 95, "subsampling": 0},
}


def photo_like(rng: np.random.Generator, side: int) -> UInt8Array:
    """Return uint8 RGB [side, side, 3] that compresses about as a photograph does."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    phases = np.exp(2j * np.pi * rng.random((4, *frequency.shape)))
    luminance, red, blue, edges = np.fft.irfft2(phases / frequency**1.4, s=(side, side))
    scaled = [each / each.std() for each in (luminance, red, blue)]
    # Objects end somewhere: where a smooth field changes its sign, the light does too.
    light = 120 + 45 * scaled[0] + 30 * np.sign(edges)
    channels = [light + 12 * scaled[1], light - 6 * scaled[1] - 4 * scaled[2], light + 12 * scaled[2]]
    picture = np.stack(channels, axis=-1) + GRAIN * rng.normal(size=(side, side, 3))
    levels: UInt8Array = picture.clip(0, 255).astype(np.uint8)
    return levels


def noise(rng: np.random.Generator, side: int) -> UInt8Array:
    """Return uint8 RGB [side, side, 3] of independent levels."""
    levels: UInt8Array = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    return levels


def measure(side: int = SIDE, images: int = IMAGES, repeats: int = REPEATS) -> dict[str, Any]:
    """Return CPU seconds and megabytes an image, by kind of image and way to write it."""
    found: dict[str, Any] = {}
    for kind, make in (("photo-like", photo_like), ("noise", noise)):
        rng = np.random.default_rng(0)
        pictures = [Image.fromarray(make(rng, side)) for _ in range(images)]
        found[kind] = {name: _one_way(pictures, options, repeats) for name, options in WAYS.items()}
    return found


def _one_way(pictures: list[Image.Image], options: dict[str, Any], repeats: int) -> dict[str, float]:
    seconds, size = [], 0
    for picture in pictures:
        each = []
        for _ in range(repeats):
            file = io.BytesIO()
            start = time.thread_time()
            picture.save(file, **options)
            each.append(time.thread_time() - start)
        seconds.append(min(each))
        size += len(file.getvalue())
    count = len(pictures)
    return {"milliseconds": round(1000 * sum(seconds) / count, 1), "megabytes": round(size / count / 1e6, 3)}


def main() -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description="Image files: bytes against seconds.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    output = parser.parse_args().output
    result = {
        "what": f"{SIDE} x {SIDE} RGB, CPU milliseconds of one thread and megabytes an image",
        "machine": record("pillow", "numpy") | {"zlib": features.version("zlib")},
        "images": measure(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
