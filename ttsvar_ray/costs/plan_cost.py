"""What one prompt costs under a plan: FLOPs of every part, and the KV cache of its population."""

from __future__ import annotations

from dataclasses import dataclass

from ttsvar_ray.costs.shape import ScaleCost, TransformerShape, scale_costs
from ttsvar_ray.search.describe import ScaleRow, describe, selector_demand
from ttsvar_ray.search.plan import Plan


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
