"""What a vision-language model costs that reads an image and a question and answers with one token.

By formula from the sizes in its config.json, as in `costs.encoder`; the tests hold FLOPs and parameters to
transformers' modules. Matrices and attention are counted, in full where a kernel may skip a causal half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.vision.published import BATCH_ROWS, FLOAT32_BYTES, NetworkCost, rounded_sides

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
"""`model_type` of the config.json of a model whose costs are known."""

QUESTION_TOKENS = 64
"""Of a question with a typical prompt, in the template of a chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionLanguageShape:
    """Sizes of the tower that sees, and of the language model that answers.

    Attributes:
        width, depth, ffn_dim: of the vision tower; `gated`: its feed-forward parts have a third matrix.
        patch, merge: pixels of a patch's side; patches of a merged token's side.
        window: pixels of the side of what most blocks attend within, 0 for the whole image.
        full_blocks: how many attend to the whole image where the others do not.
        mergers: networks that merge patches into tokens.
        positions: learnt places.
        fewest, most: pixels that an image is brought between.
        text_width, text_depth, text_ffn_dim: of the language model.
        query_width, key_width: of all its heads together.
        vocabulary: rows of its embedding; `tied`: which is also what its logits come from.
        instruction: tokens of what is said beside a question.
    """

    width: int
    depth: int
    ffn_dim: int
    gated: bool
    patch: int
    merge: int = 2
    frames: int = 2
    window: int = 0
    full_blocks: int = 0
    mergers: int = 1
    positions: int = 0
    fewest: int
    most: int
    text_width: int
    text_depth: int
    text_ffn_dim: int
    query_width: int
    key_width: int
    vocabulary: int
    tied: bool
    instruction: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any], pixels: Mapping[str, Any]) -> VisionLanguageShape:
        """Return the sizes of a checkpoint.

        Args:
            config: its config.json, of one of `FAMILIES`.
            pixels: its preprocessor_config.json.

        Raises:
            ConfigurationError: a size is missing.
        """
        vision, text = config["vision_config"], config.get("text_config", config)
        windowed = config["model_type"] == "qwen2_5_vl"
        limits = pixels.get("size") or {}
        try:
            head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
            return cls(
                width=vision["hidden_size"],
                depth=vision["depth"],
                ffn_dim=vision["intermediate_size"],
                gated=windowed,
                patch=vision.get("patch_size", 14 if windowed else 16),
                merge=vision.get("spatial_merge_size", 2),
                frames=vision.get("temporal_patch_size", 2),
                window=vision.get("window_size", 112) if windowed else 0,
                full_blocks=len(vision.get("fullatt_block_indexes", ())) if windowed else vision["depth"],
                mergers=1 + (0 if windowed else len(vision.get("deepstack_visual_indexes", ()))),
                positions=0 if windowed else vision.get("num_position_embeddings", 0),
                fewest=pixels.get("min_pixels") or limits.get("shortest_edge", 56 * 56),
                most=pixels.get("max_pixels") or limits.get("longest_edge", 4096 * 4096),
                text_width=text["hidden_size"],
                text_depth=text["num_hidden_layers"],
                text_ffn_dim=text["intermediate_size"],
                query_width=text["num_attention_heads"] * head,
                key_width=text["num_key_value_heads"] * head,
                vocabulary=text["vocab_size"],
                tied=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
            )
        except KeyError as missing:
            raise ConfigurationError(
                f"config.json of a vision-language model: expected {missing.args[0]}, found none"
            ) from None

    @property
    def parameters(self) -> int:
        """Parameters of matrices and embeddings; biases and norms, about 0.1 %, are left out."""
        embedding = self.vocabulary * self.text_width * (1 if self.tied else 2)
        tower = self.depth * self._block + self.mergers * self._merger
        tower += (3 * self.frames * self.patch**2 + self.positions) * self.width
        return embedding + self.text_depth * self._text_block + tower

    def tokens(self, height: int, width: int) -> int:
        """Return the tokens that an image becomes, its sides rounded as the image processor rounds them."""
        side = self.patch * self.merge
        high, wide = rounded_sides(height, width, side=side, fewest=self.fewest, most=self.most)
        return (high // side) * (wide // side)

    def cost(self, height: int, width: int) -> NetworkCost:
        """Return the cost of one image of so many pixels with a question.

        Images go through one at a time, so that the activations of a batch are those of one.
        """
        merged = self.tokens(height, width)
        patches, tokens = merged * self.merge**2, merged + QUESTION_TOKENS + self.instruction
        within = min(patches, (self.window // self.patch) ** 2) if self.window else patches
        spans = self.full_blocks * patches + (self.depth - self.full_blocks) * within
        tower = 2.0 * patches * (self.depth * self._block + 3 * self.frames * self.patch**2 * self.width)
        tower += 4.0 * patches * spans * self.width + 2.0 * merged * self.mergers * self._merger
        answer = 2.0 * tokens * self.text_depth * self._text_block + 2.0 * self.vocabulary * self.text_width
        answer += 4.0 * self.text_depth * tokens**2 * self.query_width
        alive = max(
            patches * (4 * self.width + 3 * self.ffn_dim),
            tokens * (4 * self.text_width + 3 * self.text_ffn_dim),
        )
        return NetworkCost(
            parameters=self.parameters,
            image_flops=tower + answer,
            activation_bytes=math.ceil(FLOAT32_BYTES * alive / BATCH_ROWS),
            layers_each=self.depth + self.text_depth,
        )

    @property
    def _block(self) -> int:
        return 4 * self.width**2 + (3 if self.gated else 2) * self.width * self.ffn_dim

    @property
    def _merger(self) -> int:
        inner = self.merge**2 * self.width
        return inner**2 + inner * self.text_width

    @property
    def _text_block(self) -> int:
        attention = 2 * self.text_width * (self.query_width + self.key_width)
        return attention + 3 * self.text_width * self.text_ffn_dim


PUBLISHED = {
    # Both have no logits, so one embedding; their authors' instruction is about 600 tokens.
    "hps-v3": VisionLanguageShape(
        width=1280,
        depth=32,
        ffn_dim=5120,
        gated=False,
        patch=14,
        full_blocks=32,
        fewest=256 * 28 * 28,
        most=256 * 28 * 28,
        text_width=3584,
        text_depth=28,
        text_ffn_dim=18944,
        query_width=3584,
        key_width=512,
        vocabulary=151658,
        tied=True,
        instruction=600,
    ),
    "hps-v3-plus-plus": VisionLanguageShape(
        width=1152,
        depth=27,
        ffn_dim=4304,
        gated=False,
        patch=16,
        full_blocks=27,
        mergers=4,
        positions=2304,
        fewest=256 * 28 * 28,
        most=256 * 28 * 28,
        text_width=4096,
        text_depth=36,
        text_ffn_dim=12288,
        query_width=4096,
        key_width=1024,
        vocabulary=151670,
        tied=True,
        instruction=600,
    ),
    "qwen2.5-vl-3b": VisionLanguageShape(
        width=1280,
        depth=32,
        ffn_dim=3420,
        gated=True,
        patch=14,
        window=112,
        full_blocks=4,
        fewest=56 * 56,
        most=16384 * 28 * 28,
        text_width=2048,
        text_depth=36,
        text_ffn_dim=11008,
        query_width=2048,
        key_width=256,
        vocabulary=151936,
        tied=True,
    ),
    "qwen3-vl-2b": VisionLanguageShape(
        width=1024,
        depth=24,
        ffn_dim=4096,
        gated=False,
        patch=16,
        full_blocks=24,
        mergers=4,
        positions=2304,
        fewest=256 * 256,
        most=4096 * 4096,
        text_width=2048,
        text_depth=28,
        text_ffn_dim=6144,
        query_width=2048,
        key_width=1024,
        vocabulary=151936,
        tied=True,
    ),
}
"""By the name of the reward: so that a job is priced before its weights are here."""
