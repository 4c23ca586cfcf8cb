"""What became of a prompt, as rows of the data set: one for each image that is kept.

Comes in: results whose images are references or bytes. Goes out: dicts in the columns of `schema`, one image
at a time. A row holds nothing of when or where it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ttsvar_ray.dataset.accounting import PlanRecord
from ttsvar_ray.dataset.schema import CarriedColumn, data_schema
from ttsvar_ray.errors import DamagedImageError
from ttsvar_ray.results import PromptResult, ResultImage

_SUFFIXES = {"png": "png", "webp": "webp", "jpeg": "jpg"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowContext:
    """What all rows of a run have in common.

    Attributes:
        rounds: whether rows say what became of their prompt's rounds.
        rewritten: whether rows say what the model read in place of their prompt.
        image_costs: of the plan (`costs.plan_cost.image_costs`); empty where they are not counted.
        plan: the plan itself; without it parts do not say what ran for them.
    """

    model: str
    strategy: str
    seed: int
    reward_name: str
    carried: tuple[CarriedColumn, ...] = ()
    bits: bool = False
    rounds: bool = False
    rewritten: bool = False
    image_costs: tuple[float, ...] = ()
    plan: PlanRecord | None = None

    @property
    def schema(self) -> pa.Schema:
        """The columns of the rows."""
        return data_schema(self.carried, bits=self.bits, rounds=self.rounds, rewritten=self.rewritten)


def payload_bytes(payload: Any) -> bytes:
    """Return a payload that is bytes already."""
    if not isinstance(payload, bytes):
        raise TypeError(f"image payload: expected bytes, got {type(payload).__name__}")
    return payload


def rows_of(
    finished: Iterable[PromptResult], context: RowContext, resolve: Callable[[Any], bytes]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of finished prompts, best image of each first, fetching one image at a time.

    Raises:
        DamagedImageError: bytes of an image changed on their way.
    """
    for outcome in finished:
        for kept in sorted(outcome.images, key=lambda image: image.rank):
            yield _row(outcome, kept, context, resolve)


def _row(
    outcome: PromptResult, kept: ResultImage, context: RowContext, resolve: Callable[[Any], bytes]
) -> dict[str, Any]:
    prompt, image = outcome.prompt, kept.image
    content = resolve(image.payload)
    if not image.is_intact(content):
        raise DamagedImageError(
            f"image {kept.rank} of prompt {prompt.key}: its bytes changed between its worker and here"
        )
    name = f"{prompt.row:08d}-{kept.rank}.{_SUFFIXES[image.image_format]}"
    row: dict[str, Any] = {
        "row": prompt.row,
        "prompt_id": prompt.prompt_id,
        "ordinal": prompt.ordinal,
        "prompt": prompt.text,
        "image": {"bytes": content, "path": name},
        "image_rank": kept.rank,
        "width": image.width,
        "height": image.height,
        "model": context.model,
        "strategy": context.strategy,
        "seed": context.seed,
        "reward": kept.reward,
        "reward_name": context.reward_name,
        "reward_history": list(kept.reward_history),
        "reward_members": list(kept.member_rewards),
        "text_truncated": outcome.counters.get("text_truncated", 0) > 0,
        "reward_texts_truncated": outcome.counters.get("reward_texts_truncated", 0),
        "rewards_not_finite": outcome.counters.get("rewards_not_finite", 0),
        "lineage": list(kept.lineage),
    }
    if context.rewritten:
        row["prompt_used"] = prompt.model_text
    if context.rounds:
        row |= {
            "round": kept.round_index,
            "rounds": outcome.rounds,
            "stopped": outcome.stopped,
            "cost_images": _cost(outcome, context.image_costs),
        }
    if context.bits:
        row["bits"] = list(kept.bits)
    for column in context.carried:
        row[column.name] = column.to_output(prompt.columns.get(column.source))
    return row


def _cost(outcome: PromptResult, image_costs: tuple[float, ...]) -> float | None:
    """Return what a prompt cost, in images drawn without any search."""
    if not image_costs:
        return None
    text, *each = image_costs
    return text + sum(count * cost for count, cost in zip(outcome.trajectories, each, strict=True))
