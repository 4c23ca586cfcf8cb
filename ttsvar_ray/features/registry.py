"""From an extractor's name and its network's files to the extractor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ttsvar_ray.errors import CheckpointError, ConfigurationError, reading_weights
from ttsvar_ray.features.protocol import FeatureExtractor
from ttsvar_ray.types import Preprocessing

if TYPE_CHECKING:
    from ttsvar_ray.features.backbone import PatchBackbone

JOINT_EXTRACTOR = "pca_all"
"""The extractor whose features the selection reduces, over the whole population at once."""
PATCH_EXTRACTORS = ("pca", JOINT_EXTRACTOR, "pool")
"""Extractors that any patch backbone serves, a model's own too."""
EXTRACTOR_NAMES = (*PATCH_EXTRACTORS, "inception")
PCA_SIGNS = ("deterministic", "published")


def build_extractor(
    name: str,
    *,
    backbone: str | Path | None,
    pca_sign: str = "deterministic",
    preprocessing: str = "published",
    device: str = "cpu",
) -> FeatureExtractor:
    """Build a feature extractor.

    Args:
        name: `pca` (per image, the patches along their first principal direction), `pca_all` (the patches
            themselves; the selection finds one direction for the whole population), `pool` (the mean of the
            patches) or `inception` (InceptionV3 after its average pooling).
        backbone: for `inception` the published `inception_v3_google-0cc3c7bd.pth`; for the others a reward
            directory (its vision tower), a published `dinov2_*_reg4_pretrain.pth` file, or a transformers
            directory of DINOv2 with registers.
        pca_sign: `deterministic` or `published` (see `ComponentSign`); only `pca` reads it here.
        preprocessing: `published` or `tensor` (see `types.Preprocessing`).
        device: torch device name.

    Raises:
        ConfigurationError: unknown name or sign, or no backbone.
        CheckpointError: the files are not a known backbone.
    """
    problems = []
    if name not in EXTRACTOR_NAMES:
        problems.append(f"features.extractor: expected one of {', '.join(EXTRACTOR_NAMES)}, got {name!r}")
    if pca_sign not in PCA_SIGNS:
        problems.append(f"features.pca_sign: expected one of {', '.join(PCA_SIGNS)}, got {pca_sign!r}")
    if backbone is None:
        problems.append(f"features.backbone: expected {expected_backbone(name)}, got nothing")
    if problems or backbone is None:
        raise ConfigurationError(problems)

    path, mode = Path(backbone), Preprocessing(preprocessing)
    if name == "inception":
        from ttsvar_ray.features.inception import load_inception

        with reading_weights(path):
            return load_inception(path, device=device, preprocessing=mode)

    from ttsvar_ray.features.patch_features import (
        PooledFeatures,
        PrincipalComponentFeatures,
        WholePatchFeatures,
    )
    from ttsvar_ray.search.principal_component import ComponentSign

    with reading_weights(path):
        network = load_backbone(path, device=device, preprocessing=mode)
    if name == "pool":
        return PooledFeatures(network)
    if name == JOINT_EXTRACTOR:
        return WholePatchFeatures(network)
    return PrincipalComponentFeatures(network, ComponentSign(pca_sign))


def expected_backbone(name: str) -> str:
    """Return, for messages, what an extractor's `features.backbone` has to name."""
    if name == "inception":
        return "the file inception_v3_google-0cc3c7bd.pth"
    return "the path of a vision network (a reward directory or DINOv2)"


def load_backbone(
    path: Path, *, device: str, preprocessing: Preprocessing = Preprocessing.PUBLISHED
) -> PatchBackbone:
    """Load a patch backbone; what it is, its files tell."""
    if path.is_file():
        from ttsvar_ray.features.dinov2 import load_hub_checkpoint

        return load_hub_checkpoint(path, device=device, preprocessing=preprocessing)
    config_file = path / "config.json"
    if not config_file.is_file():
        raise CheckpointError(
            f"{path}: expected a .pth file of DINOv2, or a directory with config.json; "
            + ("the directory has none" if path.is_dir() else "there is nothing here")
        )
    config = json.loads(config_file.read_text())
    if config.get("kind") == "blip-reward":
        from ttsvar_ray.features.vision_tower import load_vision_tower

        return load_vision_tower(path, device=device, preprocessing=preprocessing)
    if config.get("model_type") == "dinov2_with_registers":
        from ttsvar_ray.features.dinov2 import load_transformers_directory

        return load_transformers_directory(path, device=device, preprocessing=preprocessing)
    raise CheckpointError(
        f"{config_file}: expected kind 'blip-reward' or model_type 'dinov2_with_registers', "
        f"got kind {config.get('kind')!r}, model_type {config.get('model_type')!r}"
    )
