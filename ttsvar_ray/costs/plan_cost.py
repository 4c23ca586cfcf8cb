"""What one prompt costs under a plan: FLOPs of every part, and the KV cache of its population."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ttsvar_ray.costs.model import JobNetworks, ScaleCost
from ttsvar_ray.dataset.accounting import PlanRecord, SegmentRecord
from ttsvar_ray.search.describe import ScaleRow, describe
from ttsvar_ray.search.plan import Plan, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlannedScale:
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
        transformer_flops: all scales, those that looks ahead run included, and the text projections once.
        decode_flops: intermediate images for the selectors, and the final ones.
        selector_flops: features and rewards.
        encode_text_flops: the prompt, once.
        peak_kv_bytes: largest population cache; the last scale's own keys and values need not be
            kept, since nothing attends to them afterwards.
    """

    scales: tuple[_PlannedScale, ...]
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
        _PlannedScale(
            row=row,
            cost=cost,
            flops=row.population * cost.flops(share),
            kv_bytes=row.population * cost.kv_bytes,
        )
        for row, cost in zip(describe(plan), model.scales, strict=True)
    )
    seen = [_seen(row, networks, selector_decode, num_scales=plan.num_scales) for row in describe(plan)]
    ahead, decodes, selectors = (
        sum(scale.row.population * one[part] for scale, one in zip(scales, seen, strict=True))
        for part in range(3)
    )
    final_images = plan.survivors_after[-1]
    kept = [scale.kv_bytes for scale in scales[:-1]]
    if len(scales) > 1:
        kept.append(final_images * scales[-2].cost.kv_bytes)
    return PlanCost(
        scales=scales,
        transformer_flops=sum(scale.flops for scale in scales) + ahead + share * model.text.flops,
        decode_flops=decodes,
        selector_flops=selectors,
        encode_text_flops=networks.text_encoder.flops(networks.text_tokens) + networks.reward.text_flops,
        peak_kv_bytes=max(kept, default=0),
    )


def _seen(
    row: ScaleRow, networks: JobNetworks, selector_decode: str, *, num_scales: int
) -> tuple[float, float, float]:
    """Return the FLOPs of looking at one trajectory after a scale: running ahead, decodes, selectors."""
    size = "full" if row.scale_index == num_scales - 1 else selector_decode
    reward = networks.map_reward if row.on_map else networks.reward
    return (
        sum(scale.flops(networks.text_share) for scale in networks.ahead_of(row.look)),
        row.decodes / row.population * networks.model.decodes[size].flops,
        row.scored * reward.image_flops + row.embedded * networks.extractor.image_flops,
    )


def image_costs(plan: Plan, networks: JobNetworks, *, selector_decode: str) -> tuple[float, ...]:
    """Return what a prompt costs in raw images: its text, then a trajectory of each segment.

    A prompt costs the first number once, and each other one for every trajectory that ran the segment.
    """
    model, share = networks.model, networks.text_share
    rows = describe(plan.alone)
    final = model.decodes["full"].flops + networks.reward.image_flops

    def flops_after(row: ScaleRow) -> float:
        return sum(_seen(row, networks, selector_decode, num_scales=plan.num_scales))

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


def plan_record(plan: Plan, networks: JobNetworks | None, *, selector_decode: str) -> PlanRecord:
    """Return a plan with what a trajectory of each segment costs, as `run.json` has it.

    Args:
        networks: None where their costs are unknown; images are counted all the same.
        selector_decode: as `plan_cost` takes it.
    """
    alone = describe(plan.alone)

    def record(segment: Segment) -> SegmentRecord:
        rows = alone[segment.first_scale : segment.last_scale + 1]
        told = SegmentRecord(
            first_scale=segment.first_scale,
            last_scale=segment.last_scale,
            population=segment.population,
            selection=None if segment.selection is None else segment.selection.operator.name,
            decoded=sum(row.decodes for row in rows),
            scored=sum(row.judged for row in rows),
            embedded=sum(row.embedded for row in rows),
        )
        if networks is None:
            return told
        scales = networks.model.scales
        seen = [_seen(row, networks, selector_decode, num_scales=plan.num_scales) for row in rows]
        ahead, decodes, selectors = (sum(one[part] for one in seen) for part in range(3))
        return replace(
            told,
            transformer=ahead + sum(scales[row.scale_index].flops(networks.text_share) for row in rows),
            decodes=decodes,
            selectors=selectors,
        )

    segments = tuple(map(record, plan.segments))
    text = image = 0.0
    if networks is not None:
        text = (
            networks.text_share * networks.model.text.flops
            + networks.text_encoder.flops(networks.text_tokens)
            + networks.reward.text_flops
        )
        final = networks.model.decodes["full"].flops + networks.reward.image_flops
        image = text + sum(scale.flops(networks.text_share) for scale in networks.model.scales) + final
    return PlanRecord(
        strategy=plan.strategy,
        growth=plan.rounds.growth,
        is_adaptive=plan.rounds.stop_at is not None,
        segments=segments,
        text_flops=text,
        image_flops=image,
    )
