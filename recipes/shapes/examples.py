"""Captioned scenes for the transformer: images, caption tokens and tokenizer features, on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recipes.shapes.architecture import IMAGE_SIZE, TRANSFORMER
from recipes.shapes.captions import sample_example
from recipes.shapes.render import render_batch
from recipes.shapes.scenes import Scene
from recipes.shapes.text import build_text_tokenizer
from ttsvar_ray.models.infinity.tokenizer import ImageTokenizer
from ttsvar_ray.shapes.world import Caption
from ttsvar_ray.types import UInt8Array

BLOCK = 500
Sample = Callable[[np.random.Generator], tuple[Scene, Caption]]
"""Draws a scene and a caption; a function of a module, so that other processes find it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleBatch:
    """images float32 [B, 3, side, side] in [-1, 1]; features float32 [B, d, H, W]; ids, mask int64 [B, T]."""

    images: Tensor
    features: Tensor
    ids: Tensor
    mask: Tensor


def _render_block(arguments: tuple[Sample, int, int, int]) -> tuple[UInt8Array, npt.NDArray[np.int16]]:
    sample, seed, block, count = arguments
    rng = np.random.default_rng([seed, 11, block])
    pairs = [sample(rng) for _ in range(count)]
    length = TRANSFORMER.text_max_length
    encoded = build_text_tokenizer(length)(
        [caption.text for _, caption in pairs], padding="max_length", truncation=True, max_length=length
    )
    images = render_batch([scene for scene, _ in pairs], IMAGE_SIZE)
    return images, np.asarray(encoded["input_ids"], dtype=np.int16)


class Examples:
    """A fixed set of captioned scenes with the features that one tokenizer gives them."""

    def __init__(
        self, images: npt.NDArray[np.uint8], ids: npt.NDArray[np.int16], features: npt.NDArray[np.float16]
    ):
        self._images, self._ids, self._features = images, ids, features
        self.size = len(ids)

    def batch(self, index: npt.NDArray[np.int64], device: torch.device) -> ExampleBatch:
        """Return the examples of an index array."""
        images = torch.from_numpy(self._images[index]).permute(0, 3, 1, 2).float() / 127.5 - 1
        ids = torch.from_numpy(self._ids[index].astype(np.int64))
        return ExampleBatch(
            images=images.to(device),
            features=torch.from_numpy(self._features[index]).float().to(device),
            ids=ids.to(device),
            mask=(ids != 0).long().to(device),
        )


def make_examples(
    work_dir: Path,
    *,
    seed: int,
    size: int,
    sample: Sample = sample_example,
    processes: int | None = None,
) -> None:
    """Render the captioned scenes under `work_dir` where they are missing."""
    stem = work_dir / f"examples-{seed}-{size}"
    if stem.with_suffix(".ids.npy").exists():
        return
    work_dir.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(
        stem.with_suffix(".images.npy"), mode="w+", dtype=np.uint8, shape=(size, IMAGE_SIZE, IMAGE_SIZE, 3)
    )
    ids = np.zeros((size, TRANSFORMER.text_max_length), dtype=np.int16)
    with get_context("spawn").Pool(processes or os.cpu_count()) as workers:
        jobs = [(sample, seed, start // BLOCK, min(BLOCK, size - start)) for start in range(0, size, BLOCK)]
        for block, (some_images, some_ids) in enumerate(workers.imap(_render_block, jobs)):
            rows = slice(block * BLOCK, min(size, (block + 1) * BLOCK))
            images[rows], ids[rows] = some_images, some_ids
    images.flush()
    # The ids are written last: their presence says that the images are whole.
    np.save(stem.with_suffix(".partial.npy"), ids)
    stem.with_suffix(".partial.npy").replace(stem.with_suffix(".ids.npy"))


@torch.no_grad()
def open_examples(work_dir: Path, tokenizer: ImageTokenizer, *, seed: int, size: int) -> Examples:
    """Return the examples with features of `tokenizer`, computed once per tokenizer."""
    stem = work_dir / f"examples-{seed}-{size}"
    images = np.load(stem.with_suffix(".images.npy"), mmap_mode="r")
    ids = np.load(stem.with_suffix(".ids.npy"))
    weights = b"".join(
        value.float().cpu().numpy().tobytes() for value in tokenizer.encoder.state_dict().values()
    )
    digest = hashlib.blake2b(weights, digest_size=6).hexdigest()
    path = work_dir / f"features-{digest}-{seed}-{size}.npy"
    if not path.exists():
        device = next(tokenizer.parameters()).device
        parts = []
        for start in range(0, size, 500):
            some = (
                torch.from_numpy(images[start : start + 500].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
            )
            parts.append(tokenizer.encode(some.to(device)).half().cpu().numpy())
        np.save(path.with_suffix(".partial.npy"), np.concatenate(parts))
        path.with_suffix(".partial.npy").replace(path)
    return Examples(images, ids, np.load(path, mmap_mode="r"))
