"""What a plan costs on a next-scale transformer: tokens, FLOPs and KV bytes, counted, not measured.

A multiplication and an addition are two FLOPs. The transformer is Infinity's block: fused qkv and
output projection, cross-attention to the text with its own query and output projection, and a
two-layer feed-forward part; every scale attends to all tokens of the scales before it and its own.
With guidance, each trajectory is two sequences. Norms, activations and sampling are left out: they
cost memory traffic, hardly any FLOPs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ttsvar_ray.search.describe import ScaleRow, describe, selector_demand
from ttsvar_ray.search.schedule import Plan
from ttsvar_ray.types import ScaleSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """The sizes that decide a transformer's cost.

    Attributes:
        embed_dim: width C.
        depth: number of blocks.
        ffn_dim: hidden width of the feed-forward part (mlp ratio times C as the model rounds it).
        bits_per_token: bits of one token: width of the input, half the width of the output.
        text_length: tokens of a typical text.
        guidance: whether each trajectory runs a conditional and an unconditional sequence.
        kv_element_bytes: bytes of one cached number (2 for bfloat16, 4 for float32).
    """

    embed_dim: int
    depth: int
    ffn_dim: int
    bits_per_token: int
    text_length: int = 32
    guidance: bool = True
    kv_element_bytes: int = 2

    @property
    def sequences(self) -> int:
        """Sequences per trajectory."""
        return 2 if self.guidance else 1

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token leaves in the caches of all blocks."""
        return 2 * self.embed_dim * self.depth * self.sequences * self.kv_element_bytes

    @property
    def text_flops(self) -> float:
        """FLOPs to project a text's keys and values in all blocks, which is needed once a prompt."""
        return 4.0 * self.embed_dim**2 * self.text_length * self.depth * self.sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentFlops:
    """FLOPs of one call of the parts beside the transformer; 0 where they do not matter.

    Attributes:
        decode: decoding one image at the model's size.
        selector_decode: decoding one image for the selectors alone (equal to `decode` where they
            look at full images).
        embed: features of one image.
        score: reward of one image.
        encode_text: text features of one prompt.
    """

    decode: float = 0.0
    selector_decode: float = 0.0
    embed: float = 0.0
    score: float = 0.0
    encode_text: float = 0.0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedScale:
    """One scale of a plan with its costs.

    Attributes:
        row: population and selection.
        cost: of one trajectory.
        flops: transformer FLOPs of the whole population at this scale.
        kv_bytes: KV cache of the whole population at the end of this scale, before its selection.
    """

    row: ScaleRow
    cost: ScaleCost
    flops: float
    kv_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCost:
    """What one prompt costs under a plan, in FLOPs and bytes.

    Attributes:
        scales: scale by scale.
        transformer_flops: all scales, and the text projections once.
        decode_flops: intermediate images for the selectors, and the final ones.
        selector_flops: features and rewards.
        encode_text_flops: the prompt, once.
        peak_kv_bytes: largest population cache; the last scale's own keys and values need not be
            kept, since nothing attends to them afterwards.
    """

    scales: tuple[PlannedScale, ...]
    transformer_flops: float
    decode_flops: float
    selector_flops: float
    encode_text_flops: float
    peak_kv_bytes: int

    @property
    def flops(self) -> float:
        """Everything."""
        return self.transformer_flops + self.decode_flops + self.selector_flops + self.encode_text_flops

    @property
    def shares(self) -> tuple[float, ...]:
        """Each scale's share of the scales' transformer FLOPs, in 0..1."""
        total = sum(scale.flops for scale in self.scales)
        return tuple(scale.flops / total for scale in self.scales)


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


def plan_cost(plan: Plan, shape: TransformerShape, components: ComponentFlops) -> PlanCost:
    """Return what one prompt costs under `plan`; images are decoded only where somebody looks."""
    costs = scale_costs(plan.scale_schedule, shape)
    scales = tuple(
        PlannedScale(
            row=row, cost=cost, flops=row.population * cost.flops, kv_bytes=row.population * cost.kv_bytes
        )
        for row, cost in zip(describe(plan), costs, strict=True)
    )
    demand = selector_demand(plan)
    final_images = plan.survivors_after[-1]
    kept = [scale.kv_bytes for scale in scales[:-1]]
    if len(costs) > 1:
        kept.append(final_images * costs[-2].kv_bytes)
    return PlanCost(
        scales=scales,
        transformer_flops=sum(scale.flops for scale in scales) + shape.text_flops,
        decode_flops=(
            (demand.decodes - final_images) * components.selector_decode + final_images * components.decode
        ),
        selector_flops=demand.embeddings * components.embed + demand.scores * components.score,
        encode_text_flops=components.encode_text,
        peak_kv_bytes=max(kept, default=0),
    )
