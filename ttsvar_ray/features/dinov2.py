"""DINOv2 with registers: the published hub checkpoint under the names of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import Dinov2WithRegistersConfig

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.vision.checkpoints import KeyTable, read_published, rename_keys

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
    return config_of(content, head_width), rename_keys(content, DINOV2_KEYS, source=str(path))


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
