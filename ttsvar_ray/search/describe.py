"""A plan as a table, and what its selectors ask for: numbers for people, printed elsewhere."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.potentials import scored_scales
from ttsvar_ray.types import PotentialKind, SelectionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRow:
    """One scale of a plan.

    Attributes:
        height, width: the token grid.
        population: trajectories that run this scale.
        selection: what happens after it, None for nothing.
        survivors: trajectories that remain after it.
        scored, clustered: whether its images are scored, or embedded and clustered.
        decodes: images decoded after it, each once however many selectors look at it.
    """

    scale_index: int
    height: int
    width: int
    population: int
    selection: SelectionKind | None
    survivors: int
    scored: bool
    clustered: bool
    decodes: int

    @property
    def tokens(self) -> int:
        """Tokens of one trajectory at this scale."""
        return self.height * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorDemand:
    """Images that one prompt's search decodes, embeds and scores, the final ones included."""

    decodes: int
    embeddings: int
    scores: int


def describe(plan: Plan) -> tuple[ScaleRow, ...]:
    """Return one row per scale, coarse to fine."""
    kinds = {selection.scale_index: selection.kind for selection in plan.selections}
    rows: list[ScaleRow] = []
    for scale, (height, width) in enumerate(plan.scale_schedule):
        scored = scale in plan.scored_scales
        clustered = kinds.get(scale) is SelectionKind.CLUSTER
        rows.append(
            ScaleRow(
                scale_index=scale,
                height=height,
                width=width,
                population=plan.population_before[scale],
                selection=kinds.get(scale),
                survivors=plan.survivors_after[scale],
                scored=scored,
                clustered=clustered,
                decodes=plan.population_before[scale] if scored or clustered else 0,
            )
        )
    return tuple(rows)


def selector_demand(plan: Plan) -> SelectorDemand:
    """Return what the plan decodes, embeds and scores for one prompt."""
    rows = describe(plan)
    return SelectorDemand(
        decodes=sum(row.decodes for row in rows),
        embeddings=sum(row.population for row in rows if row.clustered),
        scores=sum(row.population for row in rows if row.scored),
    )


def history_demand(plan: Plan) -> SelectorDemand:
    """Return what the plan's potential asks for beyond VALUE, for one prompt.

    Zero for VALUE; for DIFF, MAX and SUM the decodes and scores at scales that only their history reads.
    """
    resample_scales = [s.scale_index for s in plan.selections if s.kind is SelectionKind.RESAMPLE]
    value_plan = dataclasses.replace(
        plan,
        potential=PotentialKind.VALUE,
        scored_scales=scored_scales(plan.num_scales, resample_scales, PotentialKind.VALUE),
    )
    demand, plain = selector_demand(plan), selector_demand(value_plan)
    return SelectorDemand(
        decodes=demand.decodes - plain.decodes,
        embeddings=demand.embeddings - plain.embeddings,
        scores=demand.scores - plain.scores,
    )
