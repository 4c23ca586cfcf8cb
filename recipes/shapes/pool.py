"""A pool of rendered scenes on disk, made once and memory-mapped by every rank."""

from __future__ import annotations

import os
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recipes.shapes.architecture import IMAGE_SIZE
from recipes.shapes.render import render_batch
from recipes.shapes.scenes import sample_scene
from ttsvar_ray.types import UInt8Array

BLOCK = 1000
HELD_OUT = 2000


def _render_block(arguments: tuple[int, int, int]) -> UInt8Array:
    seed, block, count = arguments
    rng = np.random.default_rng([seed, 7, block])
    return render_batch([sample_scene(rng) for _ in range(count)], IMAGE_SIZE)


class Pool:
    """Images of random scenes: `size` for training, then `HELD_OUT` more for measuring."""

    def __init__(self, path: Path) -> None:
        self._images = np.load(path, mmap_mode="r")
        self.size = len(self._images) - HELD_OUT

    def images(self, index: npt.NDArray[np.int64]) -> Tensor:
        """Return float32 images [n, 3, side, side] in [-1, 1]."""
        chosen = torch.from_numpy(np.ascontiguousarray(self._images[index]))
        return chosen.permute(0, 3, 1, 2).float() / 127.5 - 1


def open_pool(work_dir: Path, *, seed: int = 0, size: int = 60_000, processes: int | None = None) -> Pool:
    """Return the pool under `work_dir`, rendering it first where it is missing."""
    path = work_dir / f"scenes-{seed}-{size}.npy"
    if not path.exists():
        work_dir.mkdir(parents=True, exist_ok=True)
        total = size + HELD_OUT
        blocks = [(seed, start // BLOCK, min(BLOCK, total - start)) for start in range(0, total, BLOCK)]
        with get_context("spawn").Pool(processes or os.cpu_count()) as workers:
            images = np.concatenate(workers.map(_render_block, blocks, chunksize=1))
        temporary = path.with_suffix(".partial.npy")
        np.save(temporary, images)
        temporary.replace(path)
    return Pool(path)
