"""The published rewards and feature networks by name: parameters, and FLOPs of one image and one text.

Sizes are those of the published checkpoints; all run in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttsvar_ray.costs.encoder import EncoderShape


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCost:
    """A network that looks at images.

    Attributes:
        parameters: of everything that is loaded, to 0.5 %.
        image_flops: of one image.
        text_flops: of one text, needed once per prompt.
        activation_bytes: most bytes alive for one image, in float32.
    """

    parameters: int
    image_flops: float
    text_flops: float = 0.0
    activation_bytes: int = 0

    def __add__(self, other: JudgeCost) -> JudgeCost:
        return JudgeCost(
            parameters=self.parameters + other.parameters,
            image_flops=self.image_flops + other.image_flops,
            text_flops=self.text_flops + other.text_flops,
            activation_bytes=max(self.activation_bytes, other.activation_bytes),
        )


NOTHING = JudgeCost(parameters=0, image_flops=0.0)

_WIDE = 4


def _vision(width: int, depth: int, ffn: int, image: int, patch: int, extra: int, heads: int) -> EncoderShape:
    return EncoderShape(
        width=width,
        depth=depth,
        ffn_dim=ffn,
        tokens=(image // patch) ** 2 + extra,
        patch_values=3 * patch**2,
        heads=heads,
    )


def blip_cost(vision: Mapping[str, Any], text: Mapping[str, Any], text_tokens: int) -> JudgeCost:
    """Return the cost of a BLIP reward; sizes under the names of its config.json.

    The text tower attends to the image, so it runs once per image.
    """
    tower = _blip_tower(vision)
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
    return JudgeCost(
        parameters=tower.parameters + reader.parameters,
        image_flops=tower.flops() + reader.flops(),
        activation_bytes=max(tower.activation_bytes(_WIDE), reader.activation_bytes(_WIDE)),
    )


def blip_tower_cost(vision: Mapping[str, Any]) -> JudgeCost:
    """Return the cost of a BLIP reward's vision tower alone."""
    tower = _blip_tower(vision)
    return JudgeCost(
        parameters=tower.parameters,
        image_flops=tower.flops(),
        activation_bytes=tower.activation_bytes(_WIDE),
    )


def _blip_tower(vision: Mapping[str, Any]) -> EncoderShape:
    return _vision(
        vision["hidden_size"],
        vision["num_hidden_layers"],
        vision["intermediate_size"],
        vision["image_size"],
        vision["patch_size"],
        1,
        vision["num_attention_heads"],
    )


def _two_towers(vision: EncoderShape, text: EncoderShape | None, parameters: int) -> JudgeCost:
    return JudgeCost(
        parameters=parameters,
        image_flops=vision.flops(),
        text_flops=0.0 if text is None else text.flops(),
        activation_bytes=vision.activation_bytes(_WIDE),
    )


_CLIP_H = _two_towers(
    _vision(1280, 32, 5120, 224, 14, 1, 16),
    EncoderShape(width=1024, depth=24, ffn_dim=4096, tokens=77),
    986_109_441,
)
_CLIP_L = _two_towers(
    _vision(1024, 24, 4096, 224, 14, 1, 16),
    EncoderShape(width=768, depth=12, ffn_dim=3072, tokens=77, heads=12),
    427_616_513,
)
_IMAGE_REWARD = blip_cost(
    {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "intermediate_size": 4096,
        "image_size": 224,
        "patch_size": 16,
        "num_attention_heads": 16,
    },
    {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "vocab_size": 30524,
    },
    35,
)
_SIGLIP = _two_towers(_vision(1152, 27, 4304, 384, 14, 0, 16), None, 428_225_600)
_DINOV2 = _two_towers(_vision(1024, 24, 4096, 224, 14, 5, 16), None, 304_372_736)

REWARD_COSTS: dict[str, JudgeCost] = {
    "image-reward": _IMAGE_REWARD,
    "hps-v2.0": _CLIP_H,
    "hps-v2.1": _CLIP_H,
    "pick-score": _CLIP_H,
    "clip-score": _CLIP_L,
    "laion-aesthetic": _CLIP_L,
    "aesthetic-v2.5": _SIGLIP,
    "constant": NOTHING,
}
"""Rewards by their name in the settings."""

EXTRACTOR_COSTS: dict[str, JudgeCost] = {
    "pca": _DINOV2,
    "pca_all": _DINOV2,
    "pool": _DINOV2,
    # Convolutions at 299 x 299: counted by hand from its layers, 5.71 G multiplications.
    "inception": JudgeCost(parameters=27_161_264, image_flops=11.43e9, activation_bytes=40_000_000),
}
"""Feature extractors by their name in the settings, with the published backbone."""
