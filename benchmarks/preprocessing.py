"""What `tensor` preprocessing changes against the published one: pixels, scores, choices, time.

    python -m benchmarks.preprocessing RECORDED --out benchmarks/results/preprocessing.json

RECORDED is a folder that `ttsvar-ray verify rewards` reads. Its networks have random weights: their scores
say that little changes, not how much a trained reward would. The built-in reward is trained; it sees scenes
drawn at 128 pixels and reduced to its own 48, in populations of eight of which four show what the caption
says.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from recipes.shapes.captions import sample_caption, sample_scene_for
from recipes.shapes.render import render_batch
from ttsvar_ray.features.registry import build_extractor
from ttsvar_ray.models.registry import describe_model
from ttsvar_ray.recorded import read_images
from ttsvar_ray.rewards.registry import build_reward
from ttsvar_ray.rewards.verify import load_recorded_image_reward
from ttsvar_ray.search.operators.cluster import cluster_survivors
from ttsvar_ray.types import Preprocessing, UInt8Array
from ttsvar_ray.vision.pixels import Fit, PixelRecipe, Resample

CPU = torch.device("cpu")
POPULATIONS, POPULATION, SURVIVORS, SCENE_SIZE = 64, 8, 6, 128
TIMED_SIZE, TIMED_IMAGES, REPEATS = 1024, 8, 3
MODES = (Preprocessing.PUBLISHED, Preprocessing.TENSOR)


def difference(published: np.ndarray, tensor: np.ndarray) -> dict[str, float]:
    """Return mean and largest absolute difference, and the published values' deviation to judge them by."""
    gap = np.abs(published.astype(np.float64) - tensor)
    return {
        "mean": float(gap.mean()),
        "largest": float(gap.max()),
        "published_deviation": float(published.std()),
    }


def in_levels(recipes: list[Any], images: list[UInt8Array]) -> dict[str, float]:
    """Return the difference in levels of 255 between two recipes whose pixels lie in [0, 1]."""
    first, second = ([np.asarray(recipe(image[None])) for image in images] for recipe in recipes)
    gaps = np.concatenate(
        [np.abs(a.astype(np.float64) - b).ravel() for a, b in zip(first, second, strict=True)]
    )
    return {
        "mean": float(gaps.mean() * 255),
        "largest": float(gaps.max() * 255),
        "share that differs": float((gaps > 0.5 / 255).mean()),
    }


def pixel_differences(images: list[UInt8Array]) -> dict[str, dict[str, float]]:
    """Compare each way of making pixels, on images of any size."""
    plain: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

    def both(size: int, fit: Fit, resample: Resample) -> list[Any]:
        recipe = PixelRecipe(size=size, fit=fit, resample=resample, **plain)
        return [
            lambda image, mode=mode: replace(recipe, preprocessing=mode).apply(image, CPU) for mode in MODES
        ]

    return {
        "ImageReward, CLIP: bicubic, centre square, 224": in_levels(
            both(224, Fit.CROP, Resample.BICUBIC), images
        ),
        "Aesthetic V2.5: bicubic, aspect ignored, 384": in_levels(
            both(384, Fit.STRETCH, Resample.BICUBIC), images
        ),
        "DINOv2: bilinear, aspect ignored, 224": in_levels(both(224, Fit.STRETCH, Resample.BILINEAR), images),
        "InceptionV3: bilinear, aspect ignored, 299": in_levels(
            both(299, Fit.STRETCH, Resample.BILINEAR), images
        ),
    }


def recorded_scores(folder: Path, images: list[UInt8Array]) -> dict[str, dict[str, float]]:
    """Compare the scores and features of the recorded networks of random weights."""
    prompts = json.loads((folder / "imagereward" / "ref.json").read_text())["prompts"]
    scores = {}
    for name, texts, load in (
        (
            "ImageReward",
            prompts,
            lambda mode: load_recorded_image_reward(folder / "imagereward", preprocessing=mode),
        ),
        (
            "Aesthetic V2.5 / 10",
            [""],
            lambda mode: build_reward("aesthetic-v2.5", path=folder / "aesthetic_v25", preprocessing=mode),
        ),
    ):
        both = []
        for mode in MODES:
            reward = load(mode)
            both.append(
                np.array([[reward.score(image[None], [text])[0] for image in images] for text in texts])
            )
        scores[name] = difference(*both)
    return scores


def built_in() -> dict[str, Any]:
    """Compare the trained reward and its vision tower's features: values, and what a search would choose."""
    description = describe_model("shapes")
    rewards = [
        build_reward("shapes", path=description.reward_path, preprocessing=mode.value) for mode in MODES
    ]
    extractors = [
        build_extractor("pca", backbone=description.backbone_path, preprocessing=mode.value) for mode in MODES
    ]
    rng = np.random.default_rng(0)
    scores: list[list[np.ndarray]] = [[], []]
    features: list[list[np.ndarray]] = [[], []]
    same_best = same_survivors = 0
    for _ in range(POPULATIONS):
        caption, other = sample_caption(rng), sample_caption(rng)
        shown = [caption] * (POPULATION // 2) + [other] * (POPULATION // 2)
        images = render_batch([sample_scene_for(rng, each) for each in shown], SCENE_SIZE)
        for side in range(2):
            scores[side].append(rewards[side].score(images, [caption.text] * POPULATION))
            features[side].append(extractors[side].extract(images))
        same_best += int(scores[0][-1].argmax() == scores[1][-1].argmax())
        kept = [
            cluster_survivors(features[side][-1], SURVIVORS, np.random.default_rng(0))[0] for side in range(2)
        ]
        same_survivors += int(np.array_equal(*kept))
    return {
        "populations": POPULATIONS,
        "reward": difference(*(np.array(side) for side in scores)),
        "pca features": difference(*(np.array(side) for side in features)),
        "populations whose best image is the same": same_best,
        f"populations with the same {SURVIVORS} survivors of {POPULATION}": same_survivors,
    }


def seconds() -> dict[str, dict[str, float]]:
    """Time the preprocessing of one 1024 x 1024 image, best of several repeats, one CPU thread."""
    images = np.random.default_rng(0).integers(
        0, 256, (TIMED_IMAGES, TIMED_SIZE, TIMED_SIZE, 3), dtype=np.uint8
    )
    recipes = {
        "ImageReward": PixelRecipe(size=224),
        "DINOv2": PixelRecipe(size=224, fit=Fit.STRETCH, resample=Resample.BILINEAR),
    }
    result = {}
    for name, recipe in recipes.items():
        published, tensor = (replace(recipe, preprocessing=mode).apply for mode in MODES)
        result[name] = {"published": _best(published, images), "tensor": _best(tensor, images)}
    return result


def _best(recipe: Any, images: UInt8Array) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        recipe(images, CPU)
        times.append(time.perf_counter() - start)
    return min(times) / len(images)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recorded", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    names = sorted(path.name for path in (options.recorded / "images").glob("*.png"))
    images = read_images(options.recorded / "images", names)
    rng = np.random.default_rng(1)
    scenes = [sample_scene_for(rng, sample_caption(rng)) for _ in range(32)]
    result = {
        "torch": torch.__version__,
        "device": "cpu, 1 thread",
        "pixels in levels of 255": {
            f"recorded images ({', '.join(f'{i.shape[1]}x{i.shape[0]}' for i in images)})": pixel_differences(
                images
            ),
            f"{len(scenes)} scenes of {SCENE_SIZE} pixels": pixel_differences(
                list(render_batch(scenes, SCENE_SIZE))
            ),
        },
        "scores of recorded networks (random weights)": recorded_scores(options.recorded, images),
        "built-in reward (trained)": built_in(),
        f"seconds per {TIMED_SIZE} x {TIMED_SIZE} image": seconds(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
