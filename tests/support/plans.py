"""Plans written out by hand, so that engine tests do not depend on the presets."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.tiny_model import TINY_SCHEDULE
from ttsvar_ray.search.operators.cluster import Cluster
from ttsvar_ray.search.operators.protocol import Choice, Operator
from ttsvar_ray.search.operators.resample import Resample
from ttsvar_ray.search.plan import Plan, Selection
from ttsvar_ray.search.selection import select
from ttsvar_ray.search.strategy import SelectionSetting, compile_plan


def tts_var_plan(n: int = 1) -> Plan:
    """Return the published plan for the tiny model's 13 scales."""
    survivors = tuple(k * n for k in (8, 8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1, 1))
    return Plan(
        strategy="tts-var",
        scale_schedule=TINY_SCHEDULE,
        survivors_after=survivors,
        selections=(
            Selection(scale_index=2, operator=Cluster(), survivors=survivors[2]),
            Selection(scale_index=5, operator=Cluster(), survivors=survivors[5]),
            Selection(scale_index=6, operator=Resample(), survivors=survivors[6]),
            Selection(scale_index=9, operator=Resample(), survivors=survivors[9]),
        ),
    )


def raw_plan(n: int = 1) -> Plan:
    """Return a plan without selections: n independent images."""
    return Plan(
        strategy="raw",
        scale_schedule=TINY_SCHEDULE,
        survivors_after=(n,) * 13,
        selections=(),
    )


SEVEN_SCALES = tuple((side, side) for side in range(1, 8))
SCHEDULE = (6, 6, 6, 3, 3, 3, 3)


def plan_with(operator: str | Operator, **options: Any) -> Plan:
    setting = SelectionSetting(scale=3, operator=operator, options=options)
    return compile_plan(scale_schedule=SEVEN_SCALES, batch_schedule=SCHEDULE, selections=[setting])


def chosen(plan: Plan, rewards: list[float], features: np.ndarray | None = None, seed: int = 0) -> Choice:
    scored = sum(scale <= 3 for scale in plan.scored_scales)
    history = np.repeat(np.array(rewards)[:, None], scored, axis=1)
    return select(
        plan,
        plan.selections[0],
        features=features,
        reward_history=history,
        run_seed=seed,
        prompt_key="a#0",
        log_likelihood=np.array(rewards) - 100.0,
    )
