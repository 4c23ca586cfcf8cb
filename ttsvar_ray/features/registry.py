"""From an extractor's name and its backbone's files to the extractor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ttsvar_ray.errors import CheckpointError, ConfigurationError
from ttsvar_ray.features.protocol import FeatureExtractor

if TYPE_CHECKING:
    from ttsvar_ray.features.backbone import PatchBackbone

EXTRACTOR_NAMES = ("pca", "pool")
PCA_SIGNS = ("deterministic", "published")


def build_extractor(
    name: str,
    *,
    backbone: str | Path | None,
    pca_sign: str = "deterministic",
    device: str = "cpu",
) -> FeatureExtractor:
    """Build a feature extractor.

    Args:
        name: `pca` (per image, the patches along their first principal direction) or `pool` (their mean).
        backbone: a reward directory (its vision tower), a published `dinov2_*_reg4_pretrain.pth` file, or
            a transformers directory of DINOv2 with registers.
        pca_sign: `deterministic` or `published` (see `ComponentSign`); only `pca` has a sign.
        device: torch device name.

    Raises:
        ConfigurationError: unknown name or sign, or no backbone.
        CheckpointError: the files are not a known backbone.
    """
    problems = []
    if name == "pca_all":
        problems.append(
            "features.extractor: pca_all decomposes a whole population at once, so a trajectory's features "
            f"would depend on its micro-batch; expected one of {', '.join(EXTRACTOR_NAMES)}"
        )
    elif name not in EXTRACTOR_NAMES:
        problems.append(f"features.extractor: expected one of {', '.join(EXTRACTOR_NAMES)}, got {name!r}")
    if pca_sign not in PCA_SIGNS:
        problems.append(f"features.pca_sign: expected one of {', '.join(PCA_SIGNS)}, got {pca_sign!r}")
    if backbone is None:
        problems.append(
            "features.backbone: expected the path of a vision network (a reward directory or DINOv2), "
            "got nothing"
        )
    if problems or backbone is None:
        raise ConfigurationError(problems)

    from ttsvar_ray.features.patch_features import PooledFeatures, PrincipalComponentFeatures
    from ttsvar_ray.features.principal_component import ComponentSign

    network = load_backbone(Path(backbone), device=device)
    if name == "pool":
        return PooledFeatures(network)
    return PrincipalComponentFeatures(network, ComponentSign(pca_sign))


def load_backbone(path: Path, *, device: str) -> PatchBackbone:
    """Load a patch backbone; what it is, its files tell."""
    if path.is_file():
        from ttsvar_ray.features.dinov2 import load_hub_checkpoint

        return load_hub_checkpoint(path, device=device)
    config_file = path / "config.json"
    if not config_file.is_file():
        raise CheckpointError(
            f"{path}: expected a .pth file of DINOv2, or a directory with config.json; "
            + ("the directory has none" if path.is_dir() else "there is nothing here")
        )
    config = json.loads(config_file.read_text())
    if config.get("kind") == "blip-reward":
        from ttsvar_ray.features.vision_tower import load_vision_tower

        return load_vision_tower(path, device=device)
    if config.get("model_type") == "dinov2_with_registers":
        from ttsvar_ray.features.dinov2 import load_transformers_directory

        return load_transformers_directory(path, device=device)
    raise CheckpointError(
        f"{config_file}: expected kind 'blip-reward' or model_type 'dinov2_with_registers', "
        f"got kind {config.get('kind')!r}, model_type {config.get('model_type')!r}"
    )
