"""Scales that are judged otherwise than by a decode of what is there: what is refused, said and replayed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.search.describe import describe, history_demand, selector_demand
from ttsvar_ray.search.plan import Look, Plan
from ttsvar_ray.search.replay import Trajectories, replay_plan
from ttsvar_ray.search.strategy import SelectionSetting, compile_plan

SCHEDULE = tuple((side, side) for side in (1, 2, 3, 4, 5, 6))


def plan(**settings: Any) -> Plan:
    selections = [
        SelectionSetting(scale=1, operator="cluster"),
        SelectionSetting(scale=2, operator="cluster-best"),
        SelectionSetting(scale=3, operator="top-k"),
    ]
    return compile_plan(
        scale_schedule=SCHEDULE, batch_schedule=(8, 6, 4, 1, 1, 1), selections=selections, **settings
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"map_scales": (1,)}, r"map_scales: 1: expected a scale before the last .*\(2, 3\), got 1"),
        ({"map_scales": (5,)}, r"map_scales: 5: expected a scale before the last"),
        ({"look_ahead": {4: 5}}, r"look_ahead: 4: expected a scale before the last .* got 4"),
        ({"look_ahead": {3: 3}}, r"look_ahead: 3: expected a later scale, at most 5, got 3"),
        ({"look_ahead": {3: 6}}, r"look_ahead: 3: expected a later scale, at most 5, got 6"),
        ({"look_ahead": {3: 5}, "map_scales": (3, 2)}, r"look_ahead: 3: is in map_scales, too"),
    ],
)
def test_what_a_plan_would_not_read_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        plan(**settings)


def test_a_plan_that_reads_no_rewards_before_the_end_has_nothing_to_look_at() -> None:
    with pytest.raises(ConfigurationError, match="it reads none"):
        compile_plan(scale_schedule=SCHEDULE, strategy="best-of-n", n=2, map_scales=[2])


def test_demand_counts_what_is_decoded_and_what_is_not() -> None:
    plain, looking = plan(), plan(map_scales=(2,), look_ahead={3: 5})
    assert looking.looks == (Look(scale_index=2), Look(scale_index=3, ahead_to=5))
    assert [(row.decodes, row.scored, row.judged, row.embedded) for row in describe(looking)] == [
        (0, False, False, False),
        (8, False, False, True),
        (6, True, False, True),  # its features are of a decode all the same
        (4, True, True, False),
        (0, False, False, False),
        (1, True, True, False),
    ]
    assert selector_demand(plain).scores == 11
    assert selector_demand(looking).scores == 5
    assert selector_demand(looking).maps == 6
    assert plan(look_ahead={2: 4}).segments[2].looks == ()
    assert describe(plan(look_ahead={2: 4}))[2].decodes == 12, (
        "what is there for features, what it comes to for rewards"
    )
    assert history_demand(looking).maps == 0
    assert plain != looking


def test_a_pool_answers_where_it_was_looked_at_and_refuses_elsewhere() -> None:
    cut = compile_plan(
        scale_schedule=SCHEDULE,
        batch_schedule=(3, 3, 1, 1, 1, 1),
        selections=[SelectionSetting(scale=2, operator="top-k")],
        map_scales=(2,),
    )
    rewards = np.array([[3.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    by_map = {Look(scale_index=2): np.array([0.0, 5.0, 1.0])}
    pool = Trajectories(scales=(2, 5), rewards=rewards, looked=by_map)
    assert replay_plan(cut, pool, prompt_key="a", order=[0, 1, 2]).best == 1
    with pytest.raises(ValueError, match="was scored at"):
        replay_plan(cut, Trajectories(scales=(2, 5), rewards=rewards), prompt_key="a", order=[0, 1, 2])
