"""The key table from the published ImageReward.pt to our network, and the loading that uses it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ttsvar_ray.errors import CheckpointError
from ttsvar_ray.rewards.blip_network import BlipRewardNetwork

KEY_TABLE: tuple[tuple[str, str | None], ...] = (
    (r"blip\.visual_encoder\.cls_token", "vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.(\w+)", r"vision.embeddings.patch_embedding.\1"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.(\w+)", r"vision.encoder.layers.\1.layer_norm\2.\3"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.(\w+)", r"vision.encoder.layers.\1.self_attn.qkv.\2"),
    (
        r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.(\w+)",
        r"vision.encoder.layers.\1.self_attn.projection.\2",
    ),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.fc([12])\.(\w+)", r"vision.encoder.layers.\1.mlp.fc\2.\3"),
    (r"blip\.visual_encoder\.norm\.(\w+)", r"vision.post_layernorm.\1"),
    # A buffer of older transformers, not a weight.
    (r"blip\.text_encoder\.embeddings\.position_ids", None),
    (r"blip\.text_encoder\.(.+)", r"text.\1"),
    # BLIP's contrastive heads; the reward never used them.
    (r"blip\.(vision|text)_proj\.\w+", None),
    (r"mlp\.layers\.(\d+)\.(\w+)", r"mlp.layers.\1.\2"),
)
"""(pattern of the published key, our key); None is dropped on purpose. The first match counts."""


def rename(published_key: str) -> str | None:
    """Return our name of a published key, or None if it is dropped on purpose.

    Raises:
        CheckpointError: the key is in no row of the table.
    """
    for pattern, replacement in KEY_TABLE:
        match = re.fullmatch(pattern, published_key)
        if match:
            return None if replacement is None else match.expand(replacement)
    raise CheckpointError(
        f"ImageReward checkpoint: unknown key {published_key!r}; expected the keys of the published "
        "ImageReward.pt"
    )


def convert(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the published weights under our names."""
    renamed = ((rename(key), tensor) for key, tensor in published.items())
    return {key: tensor for key, tensor in renamed if key is not None}


def read_published(path: Path) -> dict[str, Tensor]:
    """Read ImageReward.pt (weights only, no code is run) under our names.

    Raises:
        CheckpointError: the file is missing or holds something else than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected the published ImageReward.pt")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, as in the published ImageReward.pt")
    return convert(content)


def load_strict(network: BlipRewardNetwork, weights: Mapping[str, Tensor], where: str) -> None:
    """Load weights; every key and shape must fit.

    Raises:
        CheckpointError: lists everything missing, unexpected and misshapen at once.
    """
    own = network.state_dict()
    problems = [f"missing {key} {tuple(own[key].shape)}" for key in own if key not in weights]
    problems += [f"unexpected {key} {tuple(weights[key].shape)}" for key in weights if key not in own]
    problems += [
        f"shape of {key}: expected {tuple(own[key].shape)}, got {tuple(weights[key].shape)}"
        for key in own
        if key in weights and own[key].shape != weights[key].shape
    ]
    if problems:
        shown = "\n  ".join(problems[:12]) + (
            f"\n  and {len(problems) - 12} more" if len(problems) > 12 else ""
        )
        raise CheckpointError(
            f"{where}: the weights do not fit the configured network "
            f"({len(problems)} problems; check the sizes in its configuration):\n  {shown}"
        )
    network.load_state_dict({key: tensor.to(own[key].dtype) for key, tensor in weights.items()}, strict=True)
