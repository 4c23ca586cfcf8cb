"""What a BLIP reward of any size costs, from the sizes in its config.json.

Published rewards and feature networks state their costs in their registries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttsvar_ray.costs.encoder import EncoderShape
from ttsvar_ray.vision.published import FLOAT32_BYTES, NetworkCost


def blip_cost(vision: Mapping[str, Any], text: Mapping[str, Any], text_tokens: int) -> NetworkCost:
    """Return the cost of a BLIP reward; sizes under the names of its config.json.

    The text tower attends to the image, so it runs once per image.
    """
    tower = _tower(vision)
    reader = EncoderShape(
        width=text["hidden_size"],
        depth=text["num_hidden_layers"],
        ffn_dim=text["intermediate_size"],
        tokens=text_tokens,
        cross_width=vision["hidden_size"],
        cross_tokens=tower.tokens,
        heads=text["num_attention_heads"],
        vocabulary=text["vocab_size"],
    )
    return NetworkCost(
        parameters=tower.parameters + reader.parameters,
        image_flops=tower.flops() + reader.flops(),
        activation_bytes=max(tower.activation_bytes(FLOAT32_BYTES), reader.activation_bytes(FLOAT32_BYTES)),
    )


def blip_tower_cost(vision: Mapping[str, Any]) -> NetworkCost:
    """Return the cost of a BLIP reward's vision tower alone."""
    tower = _tower(vision)
    return NetworkCost(
        parameters=tower.parameters,
        image_flops=tower.flops(),
        activation_bytes=tower.activation_bytes(FLOAT32_BYTES),
    )


def _tower(vision: Mapping[str, Any]) -> EncoderShape:
    return EncoderShape(
        width=vision["hidden_size"],
        depth=vision["num_hidden_layers"],
        ffn_dim=vision["intermediate_size"],
        tokens=(vision["image_size"] // vision["patch_size"]) ** 2 + 1,
        patch_values=3 * vision["patch_size"] ** 2,
        heads=vision["num_attention_heads"],
    )
