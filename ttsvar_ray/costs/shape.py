"""What each scale costs one trajectory on a next-scale transformer: tokens, FLOPs and KV bytes.

Counted, not measured. A multiplication and an addition are two FLOPs. The transformer is Infinity's
block: fused qkv and output projection, cross-attention to the text with its own query and output
projection, and a two-layer feed-forward part; every scale attends to all tokens of the scales before it
and its own. With guidance, each trajectory is two sequences. Norms, activations and sampling are left
out: they cost memory traffic, hardly any FLOPs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ttsvar_ray.types import ScaleSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """The sizes that decide a transformer's cost.

    Attributes:
        embed_dim: width C.
        depth: number of blocks.
        ffn_dim: hidden width of the feed-forward part (mlp ratio times C as the model rounds it).
        bits_per_token: bits of one token: width of the input, half the width of the output.
        text_length: tokens of a typical text, for FLOPs.
        guidance: whether each trajectory runs a conditional and an unconditional sequence.
        kv_element_bytes: bytes of one number of the blocks, so of the cache (2 for bfloat16, 4 for float32).
        num_heads: attention heads.
        text_channels: width of the text features.
        text_max_length: tokens that every text is padded to, for memory.
        max_scales: rows of the level embedding.
    """

    embed_dim: int
    depth: int
    ffn_dim: int
    bits_per_token: int
    text_length: int = 32
    guidance: bool = True
    kv_element_bytes: int = 2
    num_heads: int = 16
    text_channels: int = 2048
    text_max_length: int = 512
    max_scales: int = 15

    @property
    def sequences(self) -> int:
        """Sequences per trajectory."""
        return 2 if self.guidance else 1

    @property
    def element_bytes(self) -> int:
        """Bytes of one number of the blocks."""
        return self.kv_element_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token leaves in the caches of all blocks."""
        return 2 * self.embed_dim * self.depth * self.sequences * self.kv_element_bytes

    @property
    def text_flops(self) -> float:
        """FLOPs to project a text's keys and values in all blocks, which is needed once a prompt."""
        return 4.0 * self.embed_dim**2 * self.text_length * self.depth * self.sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleCost:
    """What one scale costs one trajectory.

    Attributes:
        tokens, cumulative_tokens: of this scale, and with all before it.
        linear_flops: the block's projections and feed-forward part.
        attention_flops: scores and sums of self-attention over the cumulative tokens.
        cross_attention_flops: scores and sums of attention to the text.
        head_flops: word embedding and head.
        kv_bytes: KV cache that a trajectory holds after this scale.
    """

    tokens: int
    cumulative_tokens: int
    linear_flops: float
    attention_flops: float
    cross_attention_flops: float
    head_flops: float
    kv_bytes: int

    @property
    def flops(self) -> float:
        """All transformer FLOPs of the scale."""
        return self.linear_flops + self.attention_flops + self.cross_attention_flops + self.head_flops


def scale_costs(scale_schedule: ScaleSchedule, shape: TransformerShape) -> tuple[ScaleCost, ...]:
    """Return the cost of every scale for one trajectory."""
    tokens = [height * width for height, width in scale_schedule]
    per_token = 2.0 * (6 * shape.embed_dim**2 + 2 * shape.embed_dim * shape.ffn_dim)  # qkv, out, q, out; ffn
    blocks = shape.depth * shape.sequences
    # the head has two logits a bit; the embedding reads one number a bit
    head_per_token = 2.0 * 3 * shape.bits_per_token * shape.embed_dim * shape.sequences
    return tuple(
        ScaleCost(
            tokens=count,
            cumulative_tokens=seen,
            linear_flops=per_token * count * blocks,
            attention_flops=4.0 * count * seen * shape.embed_dim * blocks,
            cross_attention_flops=4.0 * count * shape.text_length * shape.embed_dim * blocks,
            head_flops=head_per_token * count,
            kv_bytes=shape.kv_bytes_per_token * seen,
        )
        for count, seen in zip(tokens, itertools.accumulate(tokens), strict=True)
    )
