"""What one prompt costs under a plan: FLOPs of every part, and the KV cache of its population."""

from __future__ import annotations

from dataclasses import dataclass

from ttsvar_ray.costs.model import JobNetworks, ScaleCost
from ttsvar_ray.search.describe import ScaleRow, describe, selector_demand
from ttsvar_ray.search.plan import Plan


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


def plan_cost(plan: Plan, networks: JobNetworks, *, selector_decode: str) -> PlanCost:
    """Return what one prompt costs under `plan`; images are decoded only where somebody looks.

    Padding of texts is not counted.

    Args:
        selector_decode: "full" or "selector", the size of the images that selections look at.
    """
    model, share = networks.model, networks.text_share
    scales = tuple(
        PlannedScale(
            row=row,
            cost=cost,
            flops=row.population * cost.flops(share),
            kv_bytes=row.population * cost.kv_bytes,
        )
        for row, cost in zip(describe(plan), model.scales, strict=True)
    )
    demand = selector_demand(plan)
    final_images = plan.survivors_after[-1]
    kept = [scale.kv_bytes for scale in scales[:-1]]
    if len(scales) > 1:
        kept.append(final_images * scales[-2].cost.kv_bytes)
    decodes = (demand.decodes - final_images) * model.decodes[selector_decode].flops
    return PlanCost(
        scales=scales,
        transformer_flops=sum(scale.flops for scale in scales) + share * model.text.flops,
        decode_flops=decodes + final_images * model.decodes["full"].flops,
        selector_flops=(
            demand.embeddings * networks.extractor.image_flops + demand.scores * networks.reward.image_flops
        ),
        encode_text_flops=networks.text_encoder.flops(networks.text_tokens) + networks.reward.text_flops,
        peak_kv_bytes=max(kept, default=0),
    )


def image_costs(plan: Plan, networks: JobNetworks, *, selector_decode: str) -> tuple[float, ...]:
    """Return what a prompt costs in raw images: its text, then a trajectory of each segment.

    A prompt costs the first number once, and each other one for every trajectory that ran the segment.
    """
    model, share = networks.model, networks.text_share
    rows = describe(plan.alone)
    reward, extractor = networks.reward.image_flops, networks.extractor.image_flops
    final = model.decodes["full"].flops + reward

    def flops_after(row: ScaleRow) -> float:
        if row.scale_index == plan.num_scales - 1:
            return final
        decode = row.decodes * model.decodes[selector_decode].flops
        return decode + row.scored * reward + row.embedded * extractor

    text = (
        share * model.text.flops
        + networks.text_encoder.flops(networks.text_tokens)
        + networks.reward.text_flops
    )
    scales = [scale.flops(share) for scale in model.scales]
    one_image = text + sum(scales) + final
    segments = (
        sum(scales[row.scale_index] + flops_after(row) for row in rows[one.first_scale : one.last_scale + 1])
        for one in plan.segments
    )
    return (text / one_image, *(flops / one_image for flops in segments))
