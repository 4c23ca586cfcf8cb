"""Vision networks whose patches the extractors reduce: DINOv2, or the vision tower of a BLIP reward.

The tower was trained to tell objects, colours and places apart, it is at hand wherever the reward is, and it
sees images of its own size as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import (
    BlipVisionConfig,
    BlipVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
)

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.types import Float32Array, Precision, Preprocessing, UInt8Array
from ttsvar_ray.vision.batches import ImageNetwork, settle, torch_dtype
from ttsvar_ray.vision.checkpoints import (
    KeyTable,
    build_pretrained,
    load_pretrained,
    read_published,
    rename_keys,
)
from ttsvar_ray.vision.pixels import IMAGENET_MEAN, IMAGENET_STD, Fit, PixelRecipe, Resample

PUBLISHED_HEAD_WIDTH = 64
"""Width of an attention head in every published DINOv2; the checkpoint itself does not tell."""

DINOV2_KEYS: KeyTable = (
    (r"(cls_token|mask_token|register_tokens)", r"embeddings.\1"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(\w+)", r"encoder.layer.\1.norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(\w+)", r"encoder.layer.\1.attention.{part}_proj.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"encoder.layer.\1.attention.o_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.fc([12])\.(\w+)", r"encoder.layer.\1.mlp.fc\2.\3"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
    (r"norm\.(\w+)", r"layernorm.\1"),
)
"""From the names of the hub checkpoint to those of transformers."""


def read_dinov2(path: Path, *, head_width: int) -> tuple[Dinov2WithRegistersConfig, dict[str, Tensor]]:
    """Read a published `dinov2_*_reg4_pretrain.pth`: its sizes, and its weights under transformers' names.

    Args:
        path: the file (weights only, no code in it is run).
        head_width: width of one attention head.

    Raises:
        CheckpointError: not such a file, or an unknown key.
    """
    expected = "a DINOv2 checkpoint with registers, a dinov2_*_reg4_pretrain.pth"
    content = read_published(path, expected=expected)
    if "register_tokens" not in content:
        raise CheckpointError(f"{path}: expected {expected}; found no key register_tokens")
    return _config_of(content, head_width), rename_keys(content, DINOV2_KEYS, source=str(path))


def _config_of(weights: Mapping[str, Tensor], head_width: int) -> Dinov2WithRegistersConfig:
    """Return the configuration that a hub checkpoint's shapes imply."""
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    blocks = {int(match[1]) for key in weights if (match := re.match(r"blocks\.(\d+)\.", key))}
    if "blocks.0.mlp.fc1.weight" not in weights:
        raise CheckpointError(
            "DINOv2 checkpoint: only the plain MLP variants (small, base, large) are supported"
        )
    return Dinov2WithRegistersConfig(
        hidden_size=width,
        num_hidden_layers=len(blocks),
        num_attention_heads=width // head_width,
        mlp_ratio=weights["blocks.0.mlp.fc1.weight"].shape[0] // width,
        image_size=side * patch,
        patch_size=patch,
        num_register_tokens=weights["register_tokens"].shape[1],
        layer_norm_eps=1e-6,
    )


DINOV2_SIZE = 224
"""TTS-VAR resizes to this size, bilinear, whatever the aspect ratio."""
BLIP_PREFIX = "vision."


class PatchBackbone(ImageNetwork):
    """Patch states of a vision transformer after its last norm; a row does not depend on the other rows.

    Args:
        network: whose tokens are `num_leading` others, and then the patches row by row.
        name: for the names of extractors.
        num_leading: class and register tokens.
        recipe: from images to pixels. The whole image is seen, its aspect ignored: structure at the borders
            counts as much as in the middle.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        *,
        name: str,
        num_leading: int,
        recipe: PixelRecipe,
        device: str = "cpu",
        precision: Precision = Precision.FLOAT32,
    ) -> None:
        super().__init__(
            recipe=recipe, device=device, dtype=torch_dtype(precision), tf32=precision is Precision.TF32
        )
        self.name = name
        self.network = settle(network, self.device, self.dtype)
        self.num_leading = num_leading

    def patches(self, images: UInt8Array, reduce: Callable[[Tensor], Tensor] | None = None) -> Float32Array:
        """Return float32 [n, num_patches, width]; `images` uint8 RGB [n, height, width, 3], n >= 1.

        Args:
            reduce: what is to be made of each batch of patches, image by image, on the device; its result is
                returned in their place.
        """

        def forward(pixels: Tensor, _contents: Sequence[Any]) -> Tensor:
            patches = self.tokens(pixels)[:, self.num_leading :]
            return patches if reduce is None else reduce(patches)

        return self.run(forward, self.preprocess(images))

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return [n, num_leading + num_patches, width] after the last norm.

        `pixels` are normalised [n, 3, height, width]; any multiples of the patch size.
        """
        hidden: Tensor = self.network(pixel_values=pixels.to(self.device)).last_hidden_state
        return hidden


def load_backbone(
    path: Path, *, preprocessing: Preprocessing = Preprocessing.PUBLISHED, **how: Any
) -> PatchBackbone:
    """Load a patch backbone; what it is, its files tell.

    Args:
        path: a published `dinov2_*_reg4_pretrain.pth`, a directory of DINOv2 with registers as transformers
            saves it (`facebook/dinov2-with-registers-*`), or a BLIP reward directory.
        preprocessing: PIL as published, or tensors on the device.
        how: device and precision, as in `PatchBackbone`.

    Raises:
        CheckpointError: the files are no known backbone, or do not fit.
    """
    if path.is_file():
        return load_dinov2(path, preprocessing=preprocessing, **how)
    config_file = path / "config.json"
    if not config_file.is_file():
        raise CheckpointError(
            f"{path}: expected a .pth file of DINOv2, or a directory with config.json; "
            + ("the directory has none" if path.is_dir() else "there is nothing here")
        )
    config = json.loads(config_file.read_text())
    if config.get("kind") == "blip-reward":
        return _load_vision_tower(path, config, preprocessing=preprocessing, **how)
    if config.get("model_type") == "dinov2_with_registers":
        network = load_pretrained(Dinov2WithRegistersModel, path)
        return dinov2_backbone(network, path.name, preprocessing=preprocessing, **how)
    raise CheckpointError(
        f"{config_file}: expected kind 'blip-reward' or model_type 'dinov2_with_registers', "
        f"got kind {config.get('kind')!r}, model_type {config.get('model_type')!r}"
    )


def load_dinov2(
    path: Path,
    *,
    head_width: int = PUBLISHED_HEAD_WIDTH,
    preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    **how: Any,
) -> PatchBackbone:
    """Load a published `dinov2_*_reg4_pretrain.pth` (weights only); its sizes are read off the tensors.

    Args:
        head_width: width of one attention head.
        preprocessing, how: as in `load_backbone`.

    Raises:
        CheckpointError: not such a file, or keys that do not fit.
    """
    config, weights = read_dinov2(path, head_width=head_width)
    network = build_pretrained(Dinov2WithRegistersModel, config, weights, source=str(path))
    return dinov2_backbone(network, path.stem, preprocessing=preprocessing, **how)


def dinov2_backbone(
    network: Dinov2WithRegistersModel, name: str, *, preprocessing: Preprocessing, **how: Any
) -> PatchBackbone:
    """Return a DINOv2 network as a backbone that sees images as TTS-VAR shows them."""
    recipe = PixelRecipe(
        size=DINOV2_SIZE,
        fit=Fit.STRETCH,
        resample=Resample.BILINEAR,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        preprocessing=preprocessing,
    )
    leading = 1 + network.config.num_register_tokens
    return PatchBackbone(network, name=name, num_leading=leading, recipe=recipe, **how)


def _load_vision_tower(
    path: Path, config: dict[str, Any], *, preprocessing: Preprocessing, **how: Any
) -> PatchBackbone:
    weights_file = path / "model.safetensors"
    if not weights_file.is_file():
        raise CheckpointError(
            f"{path}: expected model.safetensors beside config.json; is this a reward directory?"
        )
    with safe_open(weights_file, framework="pt") as file:
        weights = {
            key.removeprefix(BLIP_PREFIX): file.get_tensor(key).float()
            for key in file.keys()  # noqa: SIM118 (the file is no mapping)
            if key.startswith(BLIP_PREFIX)
        }
    vision = BlipVisionConfig(**config["vision"])
    recipe = PixelRecipe(
        size=vision.image_size,
        fit=Fit.STRETCH,
        mean=tuple(config["pixel_mean"]),
        std=tuple(config["pixel_std"]),
        preprocessing=preprocessing,
    )
    return PatchBackbone(
        build_pretrained(BlipVisionModel, vision, weights, source=str(weights_file)),
        name=f"{config['name']}-vision",
        num_leading=1,
        recipe=recipe,
        **how,
    )
