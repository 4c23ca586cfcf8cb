"""What a plain transformer costs, by formula: vision towers, text towers, text encoders, BLIP rewards of any
size.

2 FLOPs per multiplication and addition; norms and activations are left out. Published rewards and feature
networks state their costs in their registries.

Formulas, though other costs are counted from modules: those of these networks are transformers' own, and
importing them would take longer than a whole preflight. The tests hold FLOPs and parameters to the modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttsvar_ray.vision.published import FLOAT32_BYTES, NetworkCost


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderShape:
    """Sizes of a transformer encoder, and of what it typically reads.

    Attributes:
        width: of the residual stream; queries, keys and values together are as wide each.
        depth: blocks.
        ffn_dim: hidden width of the feed-forward part.
        tokens: that it reads at once.
        gated: whether the feed-forward part has a third matrix (T5 v1.1).
        cross_width, cross_tokens: of what every block also attends to; 0 for nothing.
        patch_values: numbers in one image patch; 0 for text.
        heads: attention heads; only memory depends on them.
        vocabulary: rows of the token embedding; 0 for images.
        keeps_float32_outputs: whether the feed-forward outputs stay float32 whatever the format of the rest,
            as transformers does for T5.
    """

    width: int
    depth: int
    ffn_dim: int
    tokens: int
    gated: bool = False
    cross_width: int = 0
    cross_tokens: int = 0
    patch_values: int = 0
    heads: int = 16
    vocabulary: int = 0
    keeps_float32_outputs: bool = False

    @property
    def parameters(self) -> int:
        """Parameters of matrices and embeddings; biases and norms, about 0.1 %, are left out."""
        blocks = self.depth * (self._block_weights() + self._cross_weights())
        return blocks + (self.vocabulary + self.patch_values) * self.width

    def weight_bytes(self, element_bytes: int) -> int:
        """Return the bytes of the weights, `element_bytes` a number."""
        kept = self.depth * self.ffn_dim * self.width if self.keeps_float32_outputs else 0
        return (self.parameters - kept) * element_bytes + kept * FLOAT32_BYTES

    def flops(self, tokens: int | None = None) -> float:
        """Return the FLOPs of one forward pass over one image or text.

        Args:
            tokens: read instead of `self.tokens`.
        """
        count = self.tokens if tokens is None else tokens
        per_block = 2.0 * count * self._block_weights() + 4.0 * count**2 * self.width
        if self.cross_width:
            per_block += (
                2.0 * 2 * count * self.width**2 + 4.0 * self.cross_tokens * self.cross_width * self.width
            )
            per_block += 4.0 * count * self.cross_tokens * self.width
        return self.depth * per_block + 2.0 * count * self.patch_values * self.width

    def activation_bytes(self) -> int:
        """Return about the most bytes alive during one forward pass over one image or text, in float32.

        The feed-forward part (input, norm, hidden before and after its activation) or the attention with
        its matrix of scores, whichever is larger.
        """
        hidden = (3 if self.gated else 2) * self.ffn_dim + 3 * self.width
        attention = 6 * self.width + 2 * self.heads * max(self.tokens, self.cross_tokens)
        return FLOAT32_BYTES * self.tokens * max(hidden, attention)

    def _cross_weights(self) -> int:
        return 2 * (self.width + self.cross_width) * self.width if self.cross_width else 0

    def _block_weights(self) -> int:
        return 4 * self.width**2 + (3 if self.gated else 2) * self.width * self.ffn_dim


T5_XL = EncoderShape(
    width=2048,
    depth=24,
    ffn_dim=5120,
    tokens=512,
    gated=True,
    heads=32,
    vocabulary=32128,
    keeps_float32_outputs=True,
)
"""The encoder of flan-t5-xl, on texts padded to 512 tokens."""

NO_ENCODER = EncoderShape(width=0, depth=0, ffn_dim=0, tokens=0)
"""Of models that read no texts."""


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
        activation_bytes=max(tower.activation_bytes(), reader.activation_bytes()),
    )


def blip_tower_cost(vision: Mapping[str, Any]) -> NetworkCost:
    """Return the cost of a BLIP reward's vision tower alone."""
    tower = _tower(vision)
    return NetworkCost(
        parameters=tower.parameters,
        image_flops=tower.flops(),
        activation_bytes=tower.activation_bytes(),
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
