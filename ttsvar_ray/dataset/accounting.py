"""What a run has cost, each committed prompt once, however often it was stopped and gone on.

    run.json              plan              what one trajectory costs in each segment, counted when it began
    manifest/part-N.json  data.ran          prompts of the part, and trajectories that ran each segment
    sessions.jsonl        device_seconds    how long the workers of each session were up

FLOPs and images are products of the first two. What ran is read off the rows and selections of a part when it
is written, so that it is the same whoever drew its prompts and in how many sessions. Work that was lost, was
done again or ended in a dead letter is in the seconds alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ttsvar_ray.own_code import VISION_LANGUAGE
from ttsvar_ray.results import RunCost


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRecord:
    """A segment of a plan, and what it costs each of its trajectories.

    Attributes:
        first_scale, last_scale: its scales.
        population: trajectories that run it in a first round that is not abandoned.
        selection: name of the operator at its end, None for none.
        transformer, decodes, selectors: FLOPs; 0 where they are not counted.
        decoded, scored, embedded: images.
    """

    first_scale: int
    last_scale: int
    population: int
    selection: str | None
    decoded: int
    scored: int
    embedded: int
    transformer: float = 0.0
    decodes: float = 0.0
    selectors: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """The plan of a run as `run.json` has it, with its counted costs.

    Attributes:
        growth: of the population of each round (`search.plan.Rounds`).
        is_adaptive: whether rounds may be repeated or abandoned.
        text_flops: of one prompt, once; a text is taken to be of usual length.
        image_flops: of one image that is drawn without any search; 0 where FLOPs are not counted.
    """

    strategy: str
    growth: tuple[int, ...]
    is_adaptive: bool
    segments: tuple[SegmentRecord, ...]
    text_flops: float = 0.0
    image_flops: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as `run.json` holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlanRecord:
        """Return the record that `to_json` wrote; KeyError, TypeError or ValueError if it is none."""
        segments = tuple(SegmentRecord(**each) for each in data["segments"])
        return cls(**{**data, "growth": tuple(data["growth"]), "segments": segments})

    @property
    def row_columns(self) -> tuple[str, ...]:
        """The columns of rows that `ran` reads."""
        return ("row", "image_rank", *(("round", "rounds", "stopped") if self.is_adaptive else ()))

    def ran(self, rows: pa.Table, selections: pa.Table) -> tuple[int, ...]:
        """Return how many prompts rows are of, and how many trajectories ran each segment for them.

        Args:
            rows: `row_columns` of images.
            selections: of the searches behind them, the columns `SELECTION_COLUMNS`.
        """
        best = rows.filter(pc.equal(rows["image_rank"], 0))
        if not self.is_adaptive:
            return (len(best), *(len(best) * segment.population for segment in self.segments))
        counts = [0] * len(self.segments)
        follows = {segment.last_scale: index + 1 for index, segment in enumerate(self.segments)}
        prompts = {row["row"]: row for row in best.to_pylist()}
        for one in selections.to_pylist():
            if (prompt := prompts.get(one["row"])) is None:
                continue
            survivors = len(one["ancestor_index"])
            # Of an abandoned round nobody survives, but the best of all such rounds may be finished alone.
            is_finished = prompt["stopped"] == "abandoned" and prompt["round"] == one["round"]
            following = follows.get(one["scale_index"])
            if following is not None:
                counts[following] += survivors or int(is_finished)
        for prompt in prompts.values():
            counts[0] += self.segments[0].population * sum(self.growth[: prompt["rounds"]])
        return (len(prompts), *counts)


_COSTING_CODE = ("code.reward.", "code.map_reward.", "code.features.", "code.operator.")
SELECTION_COLUMNS = ("row", "round", "scale_index", "ancestor_index")


def run_cost(
    plan: PlanRecord,
    parts: Sequence[tuple[int, tuple[int, ...]]],
    *,
    device_seconds: Sequence[float],
    content: Mapping[str, Any],
) -> RunCost:
    """Return what a run has cost.

    Args:
        parts: images of each committed part and what ran for it; () where it does not say.
        device_seconds: of each session.
        content: of the run's manifest, which has the digest of each piece of the user's own code.
    """
    columns = 1 + len(plan.segments)
    counted = [ran for _, ran in parts if len(ran) == columns]
    prompts, *trajectories = (sum(ran[column] for ran in counted) for column in range(columns))
    pairs = list(zip(trajectories, plan.segments, strict=True))
    return RunCost(
        strategy=plan.strategy,
        prompts=prompts,
        flops={
            "texts": prompts * plan.text_flops,
            "transformer": math.fsum(count * segment.transformer for count, segment in pairs),
            "decodes": math.fsum(count * segment.decodes for count, segment in pairs),
            "selectors": math.fsum(count * segment.selectors for count, segment in pairs),
        },
        image_flops=plan.image_flops,
        trajectories={f"{segment.first_scale}-{segment.last_scale}": count for count, segment in pairs},
        decoded=sum(count * segment.decoded for count, segment in pairs),
        scored=sum(count * segment.scored for count, segment in pairs),
        embedded=sum(count * segment.embedded for count, segment in pairs),
        kept=sum(images for images, _ in parts),
        device_seconds=math.fsum(device_seconds),
        sessions=len(device_seconds),
        uncounted_parts=len(parts) - len(counted),
        uncounted_code=" and ".join(
            key.split(".", 2)[2]
            for key in content
            if key.startswith(_COSTING_CODE) and not key.endswith(VISION_LANGUAGE)
        ),
    )
