"""Images in batches: few shapes, and the same rows whatever is padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ttsvar_ray.vision.batches import Batching, ImageNetwork
from ttsvar_ray.vision.pixels import PixelRecipe


def test_an_accelerator_sees_a_few_sizes() -> None:
    sizes = [Batching(most_rows=32).padded(rows) for rows in range(1, 33)]
    assert sorted(set(sizes)) == [2, 4, 8, 16, 32]
    assert all(rows <= size < max(2 * rows, 3) for rows, size in enumerate(sizes, start=1))
    assert Batching(most_rows=200).padded(150) == 200, "never more than the most, which may be any number"


def test_repeatable_kernels_see_one_size() -> None:
    assert {Batching(most_rows=8, is_fixed=True).padded(rows) for rows in range(1, 9)} == {8}


@pytest.mark.parametrize("multiple_of", [1, 4, 64])
def test_a_cpu_doubles_a_lone_image_and_fills_whole_steps(multiple_of: int) -> None:
    batching = Batching(most_rows=32, multiple_of=multiple_of)
    for rows in range(1, 33):
        padded = batching.padded(rows)
        assert padded >= max(2, rows) and padded - rows <= max(1, multiple_of - 1)
        assert padded % multiple_of == 0 or (rows, multiple_of) == (1, 1)


def test_what_is_padded_is_dropped_and_each_image_is_preprocessed_once() -> None:
    seen: list[int] = []

    class Recipe(PixelRecipe):
        __slots__ = ()

        def apply(self, images: np.ndarray, device: torch.device) -> torch.Tensor:
            seen.append(len(images))
            return super().apply(images, device)

    network = ImageNetwork(recipe=Recipe(size=8), device="cpu", cpu_rows=4)
    images = np.random.default_rng(0).integers(0, 256, (33, 12, 9, 3), dtype=np.uint8)
    batches: list[int] = []

    def forward(pixels: torch.Tensor, contents: object) -> torch.Tensor:
        batches.append(len(pixels))
        return pixels.mean(dim=(1, 2, 3))

    means = network.run(forward, network.preprocess(images))
    assert (seen, batches) == ([33], [32, 4]), "images are resized before batches are filled up"
    alone = [network.run(forward, network.preprocess(image[None]))[0] for image in images]
    np.testing.assert_array_equal(means, alone)
