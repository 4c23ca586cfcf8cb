"""A plan as a table, and what its selectors ask for: numbers for people, printed elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Look, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRow:
    """One scale of a plan.

    Attributes:
        population: trajectories that run this scale.
        selection: name of the operator after it, None for none.
        survivors: trajectories that remain after it.
        scored, embedded: whether a selection or the end sees their rewards, and their features.
        look: how their rewards are had, where not by a decode.
        decodes: images decoded after it, each once however many selectors look at it; those of a look ahead
            included.
    """

    scale_index: int
    height: int
    width: int
    population: int
    selection: str | None
    survivors: int
    scored: bool
    embedded: bool
    look: Look | None
    decodes: int

    @property
    def judged(self) -> bool:
        """Whether the reward sees images of this scale, or of a look ahead from it."""
        return self.scored and not self.on_map

    @property
    def on_map(self) -> bool:
        """Whether rewards are read off the feature map."""
        return self.look is not None and self.look.ahead_to is None

    @property
    def tokens(self) -> int:
        """Tokens of one trajectory at this scale."""
        return self.height * self.width

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "scale": self.scale_index,
            "grid": [self.height, self.width],
            "tokens": self.tokens,
            "population": self.population,
            "selection": self.selection,
            "survivors": self.survivors,
            "decoded": self.decodes,
            "scored": self.scored,
            "look": None if self.look is None else "map" if self.on_map else self.look.ahead_to,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorDemand:
    """Images that one prompt's search decodes, embeds and scores, the final ones included, and feature maps
    that it scores undecoded."""

    decodes: int
    embeddings: int
    scores: int
    maps: int = 0


def describe(plan: Plan) -> tuple[ScaleRow, ...]:
    """Return one row per scale, coarse to fine."""
    operators = {selection.scale_index: selection.operator for selection in plan.selections}
    looks = {look.scale_index: look for look in plan.looks}
    rows: list[ScaleRow] = []
    for scale, (height, width) in enumerate(plan.scale_schedule):
        operator = operators.get(scale)
        scored = scale in plan.scored_scales
        embedded = operator is not None and Signal.FEATURES in operator.reads
        look = looks.get(scale)
        # Features are of what is there; a look ahead decodes what it has come to besides.
        decodes = int(embedded or (scored and look is None)) + int(
            look is not None and look.ahead_to is not None
        )
        rows.append(
            ScaleRow(
                scale_index=scale,
                height=height,
                width=width,
                population=plan.population_before[scale],
                selection=None if operator is None else operator.name,
                survivors=plan.survivors_after[scale],
                scored=scored,
                embedded=embedded,
                look=look,
                decodes=decodes * plan.population_before[scale],
            )
        )
    return tuple(rows)


def selector_demand(plan: Plan) -> SelectorDemand:
    """Return what the plan decodes, embeds and scores for one prompt."""
    rows = describe(plan)
    return SelectorDemand(
        decodes=sum(row.decodes for row in rows),
        embeddings=sum(row.population for row in rows if row.embedded),
        scores=sum(row.population for row in rows if row.judged),
        maps=sum(row.population for row in rows if row.on_map),
    )


def history_demand(plan: Plan) -> SelectorDemand:
    """Return what the plan decodes and scores for histories alone, for one prompt.

    That is at scales where no operator selects by rewards: none for the potential VALUE; DIFF, MAX and SUM
    read earlier scores, too.
    """
    own = {s.scale_index for s in plan.selections if Signal.REWARDS in s.operator.reads}
    own.add(plan.num_scales - 1)
    rows = [row for row in describe(plan) if row.scored and row.scale_index not in own]
    return SelectorDemand(
        decodes=sum(row.decodes for row in rows if not row.embedded),
        embeddings=0,
        scores=sum(row.population for row in rows if row.judged),
        maps=sum(row.population for row in rows if row.on_map),
    )
