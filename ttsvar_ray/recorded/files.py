"""Reading recorded folders: what is missing or damaged is named."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ttsvar_ray.errors import CheckpointError, reading_weights
from ttsvar_ray.types import UInt8Array


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what libraries raise over a missing or damaged file into a CheckpointError that names it."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; the recorded folder is incomplete")
    with reading_weights(path, kind="a recorded file"):
        yield


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object."""
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_images(folder: Path, names: list[str]) -> list[UInt8Array]:
    """Return uint8 RGB [height, width, 3] images of any sizes."""
    images = []
    for name in names:
        path = folder / Path(name).name
        with reading(path), Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB")))
    return images


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file."""
    with reading(path), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def read_tensors(path: Path) -> dict[str, Any]:
    """Return the tensors of a .safetensors file."""
    from safetensors.torch import load_file

    with reading(path):
        return load_file(path)
