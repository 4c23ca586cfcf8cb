"""How often two views of one image point opposite ways, for each sign rule of `pca`.

    python -m benchmarks.component_sign RECORDED --out benchmarks/results/component_sign.json

Scenes of the built-in world against copies with noise on every pixel value, uniform up to so many levels; and
against themselves, decomposed by other libraries. Two networks: the built-in reward's vision tower (trained),
and the DINOv2 of a folder that `ttsvar-ray verify rewards` reads (random weights).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.shapes.captions import sample_caption, sample_scene_for
from recipes.shapes.render import render_batch
from ttsvar_ray.features.backbones import PatchBackbone, load_backbone
from ttsvar_ray.features.verify import load_recorded_dinov2
from ttsvar_ray.models.registry import describe_model
from ttsvar_ray.search.principal_component import ComponentSign, first_component
from ttsvar_ray.types import Float32Array, UInt8Array

IMAGES, SIZE = 200, 48
NOISE_LEVELS = (1, 4, 16)


def scenes() -> UInt8Array:
    """Return uint8 [IMAGES, SIZE, SIZE, 3]."""
    rng = np.random.default_rng(4)
    return render_batch([sample_scene_for(rng, sample_caption(rng)) for _ in range(IMAGES)], SIZE)


def noisy(images: UInt8Array, levels: int) -> UInt8Array:
    """Return copies that are off by up to `levels`."""
    step = np.random.default_rng(levels).integers(-levels, levels + 1, images.shape)
    return np.clip(images.astype(np.int16) + step, 0, 255).astype(np.uint8)


def by_torch(patches: Float32Array, *, with_svd: bool) -> Float32Array:
    """Return components [n, num_patches] from torch's decompositions, whatever sign they give."""
    points = torch.from_numpy(patches)
    centred = points - points.mean(dim=1, keepdim=True)
    if with_svd:
        direction = torch.linalg.svd(centred, full_matrices=False)[2][:, 0]
    else:
        direction = torch.linalg.eigh(centred.mT @ centred)[1][:, :, -1]
    components: Float32Array = (centred @ direction[:, :, None])[..., 0].numpy()
    return components


def opposite(first: Float32Array, second: Float32Array) -> int:
    """Return how many rows point away from each other."""
    return int(((first * second).sum(axis=1) < 0).sum())


def measure(backbone: PatchBackbone) -> dict[str, Any]:
    """Return the number of images, of all, whose two views are opposite."""
    images = scenes()
    patches = backbone.patches(images)
    own = {sign: first_component(patches, sign) for sign in ComponentSign}
    result: dict[str, Any] = {}
    for levels in NOISE_LEVELS:
        other = backbone.patches(noisy(images, levels))
        result[f"noise up to {levels} levels"] = {
            sign.value: opposite(own[sign], first_component(other, sign)) for sign in ComponentSign
        }
    published = own[ComponentSign.PUBLISHED]
    result["singular vectors of numpy and of torch"] = opposite(published, by_torch(patches, with_svd=True))
    result["singular vectors of numpy, eigenvectors of torch"] = opposite(
        published, by_torch(patches, with_svd=False)
    )
    return result


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recorded", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tower = describe_model("shapes").backbone_path
    assert tower is not None
    result = {
        "images": IMAGES,
        "numpy": np.__version__,
        "torch": torch.__version__,
        "opposite, built-in vision tower (trained)": measure(load_backbone(tower, device="cpu")),
        "opposite, recorded DINOv2 (random weights)": measure(load_recorded_dinov2(options.recorded)),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
