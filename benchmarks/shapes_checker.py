"""Measure the shapes checker: what is true confirmed, what has one thing wrong rejected, time.

python benchmarks/shapes_checker.py [NUM_SCENES] [hard]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from recipes.shapes.captions import sample_example, sample_scene_for
from recipes.shapes.render import render
from recipes.shapes.scenes import CROWD
from recipes.shapes.variants import hard_negatives
from ttsvar_ray.shapes.checker import judge
from ttsvar_ray.shapes.detection import find_objects
from ttsvar_ray.shapes.world import HARD_KINDS, Kind
from ttsvar_ray.types import UInt8Array

SEED = 2025
SETTINGS = (
    (48, 0.0),
    (48, 0.5),
    (48, 1.0),
    (48, 1.3),
    (48, 1.6),
    (48, 2.0),
    (64, 0.0),
    (96, 0.0),
    (128, 0.0),
)
"""(image size, standard deviation of the blur in pixels); blurred images also get noise of 4 grey levels."""


def degraded(image: UInt8Array, blur: float, rng: np.random.Generator) -> UInt8Array:
    """Return the image as a mediocre decoder would give it."""
    if not blur:
        return image
    soft = gaussian_filter(image.astype(float), (blur, blur, 0)) + rng.normal(0, 4, image.shape)
    return np.asarray(np.rint(np.clip(soft, 0, 255)), dtype=np.uint8)


def main(num_scenes: int, kinds: Sequence[Kind | None]) -> None:
    """Print one row for each setting; the kinds take turns, None is GenEval's as in training."""
    print(
        "| size | blur (px) | confirmed | swapped captions rejected | wrong scenes rejected | CPU ms/image |"
        "\n|---|---|---|---|---|---|"
    )
    for size, blur in SETTINGS:
        rng, wrong_rng = np.random.default_rng(SEED), np.random.default_rng([SEED, 1])
        confirmed = rejected = swapped = wrong_rejected = wrong = 0
        seconds = 0.0
        for row in range(num_scenes):
            scene, caption = sample_example(rng, kinds[row % len(kinds)])
            image = degraded(render(scene, size), blur, rng)
            start = time.process_time()
            seen = find_objects(image)
            seconds += time.process_time() - start
            confirmed += judge(seen, caption).correct
            negatives = hard_negatives(caption, rng)
            swapped += len(negatives)
            rejected += sum(not judge(seen, negative).correct for negative in negatives)
            other = negatives[0]
            if sum(claim.count for claim in other.claims) <= CROWD:
                wrong += 1
                shown = degraded(render(sample_scene_for(wrong_rng, other), size), blur, wrong_rng)
                wrong_rejected += not judge(find_objects(shown), caption).correct
        print(
            f"| {size} | {blur} | {confirmed}/{num_scenes} | {rejected}/{swapped} "
            f"| {wrong_rejected}/{wrong} | {1000 * seconds / num_scenes:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500, HARD_KINDS if "hard" in sys.argv[2:] else [None])
