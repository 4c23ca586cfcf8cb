"""DINOv2 with registers as a patch backbone, from the published hub checkpoint or from transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.features.batches import run_in_batches
from ttsvar_ray.features.pixels import SquarePixels
from ttsvar_ray.types import Float32Array, Preprocessing, UInt8Array

INPUT_SIZE = 224
"""TTS-VAR resizes to this size, bilinear, whatever the aspect ratio."""

PUBLISHED_HEAD_WIDTH = 64
"""Width of an attention head in every published DINOv2; the checkpoint itself does not tell."""

KEY_TABLE: tuple[tuple[str, str], ...] = (
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
"""(pattern of the hub key, transformers key); a row with {part} is split in query, key and value."""


class Dinov2Backbone:
    """Patch tokens after the last norm (class and register tokens left out) at 224 x 224 pixels."""

    def __init__(
        self,
        network: Dinov2WithRegistersModel,
        *,
        name: str,
        device: str = "cpu",
        batch_rows: int = 32,
        preprocessing: Preprocessing = Preprocessing.PUBLISHED,
    ) -> None:
        self.name = name
        self.pixels = SquarePixels(size=INPUT_SIZE, resample="bilinear", mode=preprocessing)
        self.device = torch.device(device)
        self.batch_rows = batch_rows
        self.network = network.eval().requires_grad_(False)
        self.network.to(device=self.device)
        self.first_patch = 1 + network.config.num_register_tokens

    def patches(self, images: UInt8Array) -> Float32Array:
        """Return float32 [n, 256, width] for patches of 14 pixels."""
        return run_in_batches(images, self._forward, batch_rows=self.batch_rows, device=self.device)

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return [n, 1 + registers + patches, width] after the last norm: class, registers, patches.

        `pixels` are normalised [n, 3, height, width]; any multiples of the patch size.
        """
        hidden: Tensor = self.network(pixels.to(self.device)).last_hidden_state
        return hidden

    def _forward(self, images: UInt8Array) -> Tensor:
        return self.tokens(self.pixels(images, self.device))[:, self.first_patch :]


def load_hub_checkpoint(
    path: Path,
    *,
    device: str = "cpu",
    head_width: int = PUBLISHED_HEAD_WIDTH,
    preprocessing: Preprocessing = Preprocessing.PUBLISHED,
) -> Dinov2Backbone:
    """Load a published `dinov2_*_reg4_pretrain.pth` (weights only); its sizes are read off the tensors.

    Args:
        path: the file.
        device: torch device name.
        head_width: width of one attention head.
        preprocessing: PIL as published, or tensors on the device.

    Raises:
        CheckpointError: not such a file, or keys that do not fit.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping) or "register_tokens" not in content:
        raise CheckpointError(
            f"{path}: expected the tensors of a DINOv2 checkpoint with registers (key register_tokens); "
            "take a dinov2_*_reg4_pretrain.pth"
        )
    network = Dinov2WithRegistersModel(config_of(content, head_width))
    weights = convert(content)
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise CheckpointError(f"{path}: missing {sorted(missing)[:8]}, unexpected {sorted(unexpected)[:8]}")
    return Dinov2Backbone(network, name=path.stem, device=device, preprocessing=preprocessing)


def config_of(weights: Mapping[str, Tensor], head_width: int) -> Dinov2WithRegistersConfig:
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


def convert(hub: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return hub weights under the names of transformers.

    Raises:
        CheckpointError: a key in no row of the table.
    """
    weights: dict[str, Tensor] = {}
    for key, tensor in hub.items():
        match, target = next(
            ((match, target) for pattern, target in KEY_TABLE if (match := re.fullmatch(pattern, key))),
            (None, ""),
        )
        if match is None:
            raise CheckpointError(f"DINOv2 checkpoint: unknown key {key!r}")
        if "{part}" in target:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                weights[match.expand(target.replace("{part}", part))] = third.clone()
        else:
            weights[match.expand(target)] = tensor
    return weights


def load_transformers_directory(
    path: Path, *, device: str = "cpu", preprocessing: Preprocessing = Preprocessing.PUBLISHED
) -> Dinov2Backbone:
    """Load a directory saved by transformers (`facebook/dinov2-with-registers-*`), never from a hub."""
    loaded: Any = Dinov2WithRegistersModel.from_pretrained(
        path, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    network, report = loaded
    problems = {
        kind: sorted(report[kind])[:8] for kind in ("missing_keys", "mismatched_keys") if report[kind]
    }
    if problems:
        raise CheckpointError(f"{path}: the weights do not fit its config.json: {problems}")
    return Dinov2Backbone(network, name=path.name, device=device, preprocessing=preprocessing)
