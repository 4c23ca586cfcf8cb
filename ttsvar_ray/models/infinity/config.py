"""Hyper-parameters of the Infinity transformer and its tokenizer; read where no network runs."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.models.description import section_values

FAMILY = "infinity"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Shape of one transformer; equal values build equal state dicts.

    Attributes:
        embed_dim: width C.
        num_heads: attention heads H; C / H must be a multiple of 4 (2-D rotary pairs).
        block_chunks: groups of blocks in the state-dict names; divides depth.
        bits_per_token: bits of one transformer token (4 x the tokenizer's width with spatial patchify).
        text_channels: width of the text features.
        text_max_length: tokens a text is cut and padded to.
        rope_grid: (rows, columns) that every scale's positions are stretched to. Published models use the
            last scale of the aspect ratio's 1M schedule, whatever the image size.
        pool_heads: heads of the text pooling; None derives the published number from `text_channels`.
        mlp_ratio: hidden width of the feed-forward part over C, rounded to a multiple of 256.
        max_scales: rows of the level embedding.
    """

    depth: int
    embed_dim: int
    num_heads: int
    block_chunks: int
    bits_per_token: int
    text_channels: int
    text_max_length: int
    rope_grid: tuple[int, int]
    pool_heads: int | None = None
    mlp_ratio: float = 4.0
    max_scales: int = 15

    def __post_init__(self) -> None:
        problems = []
        if self.embed_dim % self.num_heads or (self.embed_dim // self.num_heads) % 4:
            problems.append(
                f"transformer.num_heads: expected embed_dim / num_heads to be a multiple of 4, "
                f"got {self.embed_dim} / {self.num_heads}"
            )
        if self.block_chunks < 1 or self.depth % self.block_chunks:
            problems.append(
                f"transformer.block_chunks: expected a divisor of depth {self.depth}, got {self.block_chunks}"
            )
        if self.num_pool_heads < 1 or self.embed_dim % self.num_pool_heads:
            problems.append(
                f"transformer.pool_heads: expected a divisor of embed_dim {self.embed_dim}, "
                f"got {self.num_pool_heads}; give pool_heads"
            )
        if self.ffn_dim < 1:
            problems.append("transformer.mlp_ratio: the feed-forward width rounds to 0; enlarge it")
        if problems:
            raise ConfigurationError(problems)

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def ffn_dim(self) -> int:
        return round(self.embed_dim * self.mlp_ratio / 256) * 256

    @property
    def num_pool_heads(self) -> int:
        if self.pool_heads is not None:
            return self.pool_heads
        return self.text_channels // (64 if self.embed_dim > 4096 else 128)

    @property
    def blocks_per_chunk(self) -> int:
        return self.depth // self.block_chunks

    def to_json(self) -> dict[str, Any]:
        """Return plain values for config.json."""
        values = dataclasses.asdict(self)
        values["rope_grid"] = list(self.rope_grid)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TransformerConfig:
        """Read the values of config.json.

        Raises:
            ConfigurationError: keys that are unknown or absent, or values that do not fit together.
        """
        return cls(**section_values(cls, values, section="transformer"))


class Norm(str, enum.Enum):
    """Normalisation inside residual blocks."""

    GROUP = "group"
    NONE = "none"


class Activation(str, enum.Enum):
    """Non-linearity of the tokenizer."""

    SWISH = "swish"
    RELU = "relu"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """Architecture of one tokenizer.

    Attributes:
        codebook_dim: channels d of the feature map.
        base_channels: channels at multiplier 1.
        encoder_multipliers, decoder_multipliers: per level, image side first; one level less than
            this many halvings of the image.
        num_res_blocks: per encoder level; the decoder has one more.
        pixel_shuffle: side of the pixel blocks folded into channels at the image side.
        normalize_latent: project encoder output to the unit sphere, per position.
    """

    codebook_dim: int
    base_channels: int = 128
    encoder_multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    decoder_multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    num_res_blocks: int = 2
    pixel_shuffle: int = 1
    norm: Norm = Norm.GROUP
    activation: Activation = Activation.SWISH
    normalize_latent: bool = False

    @property
    def patch_size(self) -> int:
        """Pixels per cell of the feature map."""
        return int(self.pixel_shuffle * 2 ** (len(self.encoder_multipliers) - 1))
