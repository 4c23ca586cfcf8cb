"""Measure the shapes checker: share of true captions confirmed, share of swapped captions rejected, time.

python benchmarks/shapes_checker.py [NUM_SCENES]
"""

from __future__ import annotations

import sys
import time

import numpy as np
from scipy.ndimage import gaussian_filter

from recipes.shapes.captions import sample_example
from recipes.shapes.render import render
from recipes.shapes.variants import hard_negatives
from ttsvar_ray.shapes.checker import judge
from ttsvar_ray.shapes.detection import find_objects

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


def main(num_scenes: int) -> None:
    """Print one row for each setting."""
    print("| size | blur (px) | confirmed | swapped rejected | CPU ms/image |\n|---|---|---|---|---|")
    for size, blur in SETTINGS:
        rng = np.random.default_rng(SEED)
        confirmed = rejected = swapped = 0
        seconds = 0.0
        for _ in range(num_scenes):
            scene, caption = sample_example(rng)
            image = render(scene, size)
            if blur:
                soft = gaussian_filter(image.astype(float), (blur, blur, 0)) + rng.normal(0, 4, image.shape)
                image = np.asarray(np.rint(np.clip(soft, 0, 255)), dtype=np.uint8)
            start = time.process_time()
            seen = find_objects(image)
            seconds += time.process_time() - start
            confirmed += judge(seen, caption).correct
            negatives = hard_negatives(caption, rng)
            swapped += len(negatives)
            rejected += sum(not judge(seen, negative).correct for negative in negatives)
        print(
            f"| {size} | {blur} | {confirmed}/{num_scenes} | {rejected}/{swapped} "
            f"| {1000 * seconds / num_scenes:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
