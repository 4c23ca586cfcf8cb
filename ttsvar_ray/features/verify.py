"""Compare the feature extractors with recorded arrays of the official DINOv2.

`dinov2_reg` holds a hub checkpoint, `meta.json` (its width and heads, names of images in the folder `images`
beside it) and `ref.npz`: any of `pixels` (float16), `patchtokens`, `cls`, `reg`, `pca`, `pca_all`, `pool`,
and `patchtokens_168x280`, of the pixels resized bilinearly to that size without antialiasing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.features.backbones import PatchBackbone, load_dinov2
from ttsvar_ray.features.patch_features import mean_over_patches
from ttsvar_ray.recorded import Case, aligned, read_images, read_json, reading, required
from ttsvar_ray.search.principal_component import ComponentSign, first_component, first_component_of_all
from ttsvar_ray.types import Float32Array

FOLDER = "dinov2_reg"
CHECKPOINT = "dinov2_vitl14_reg4_pretrain.pth"

PIXELS, TOKENS, COMPONENTS, POOLED = 1e-3, 1e-5, 5e-5, 1e-5
"""Largest absolute differences. Pixels are recorded in float16, up to 2.6: half a step is 1e-3. Components
are sums over the width, of standard deviation 4."""

_OTHER_SIZE = (168, 280)


def verify_dinov2(folder: Path, *, device: str = "cpu") -> Case:
    """Compare with everything that `folder` / dinov2_reg recorded.

    Raises:
        CheckpointError: a file is missing or damaged, or they do not belong together.
    """
    place = folder / FOLDER
    meta = read_json(place / "meta.json")
    with reading(place / "ref.npz"), np.load(place / "ref.npz", allow_pickle=False) as arrays:
        case = Case(name=FOLDER, recorded=dict(arrays))
    images = read_images(folder / "images", [str(name) for name in _list(place, meta)])
    backbone = load_recorded_dinov2(folder, device=device)
    with torch.inference_mode():
        pixels = torch.cat([backbone.preprocess(image[None]) for image in images])
        tokens = backbone.tokens(pixels)
        case.compare("pixels", pixels, PIXELS)
        case.compare("cls", tokens[:, 0], TOKENS)
        case.compare("reg", tokens[:, 1 : backbone.num_leading], TOKENS)
        patches = np.concatenate([backbone.patches(image[None]) for image in images])
        case.compare("patchtokens", patches, TOKENS)
        if "patchtokens_168x280" in case.recorded:
            resized = F.interpolate(pixels, size=_OTHER_SIZE, mode="bilinear")
            other = backbone.tokens(resized)[:, backbone.num_leading :]
            case.compare("patchtokens_168x280", other, TOKENS)
    case.compare("pool", mean_over_patches(patches), POOLED)
    for sign in ComponentSign:
        _compare_components(case, patches, sign)
    # Compared once for each sign, under names of their own.
    case.note_the_rest(inputs="^pca(_all)?$")
    return case


def load_recorded_dinov2(folder: Path, *, device: str = "cpu") -> PatchBackbone:
    """Load the network of `folder` / dinov2_reg, of whatever size.

    Raises:
        CheckpointError: a file is missing or damaged, or they do not belong together.
    """
    place = folder / FOLDER
    meta, where = read_json(place / "meta.json"), str(place / "meta.json")
    width, heads = required(meta, "embed_dim", where), required(meta, "num_heads", where)
    with reading(place / CHECKPOINT):
        return load_dinov2(place / CHECKPOINT, device=device, head_width=int(str(width)) // int(str(heads)))


def _list(place: Path, meta: dict[str, object]) -> list[object]:
    names = required(meta, "images", str(place / "meta.json"))
    if not isinstance(names, list):
        raise CheckpointError(
            f"{place / 'meta.json'}: images: expected a list of file names, found {names!r}"
        )
    return names


def _compare_components(case: Case, patches: Float32Array, sign: ComponentSign) -> None:
    """Components have no sign of their own: each recorded row, and `pca_all` as a whole, may be turned."""
    if "pca" in case.recorded:
        expected = case.recorded["pca"]
        got = aligned(first_component(patches, sign), expected)
        case.between(f"pca, {sign.value} sign", got, expected, COMPONENTS)
    if "pca_all" in case.recorded:
        together = case.recorded["pca_all"].reshape(1, -1)
        got = aligned(first_component_of_all(patches, sign).reshape(1, -1), together)
        case.between(f"pca_all, {sign.value} sign", got, together, COMPONENTS)
