"""The plan: the published one, its segments, its table, and what people are told about bad settings."""

from __future__ import annotations

import pytest

from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.search.describe import SelectorDemand, describe, history_demand, selector_demand
from ttsvar_ray.search.operators.cluster import Cluster
from ttsvar_ray.search.operators.resample import Resample
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.strategy import SelectionSetting, compile_plan
from ttsvar_ray.types import PotentialKind

INFINITY_1M = tuple((side, side) for side in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
PUBLISHED = (8, 8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1, 1)


def _problems(**settings: object) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as raised:
        compile_plan(scale_schedule=INFINITY_1M, **settings)  # type: ignore[arg-type]
    return raised.value.problems


def test_default_plan_is_the_published_one() -> None:
    plan = compile_plan(scale_schedule=INFINITY_1M)

    assert plan.strategy == "tts-var"
    assert plan.survivors_after == PUBLISHED
    assert [(s.scale_index, s.operator.name, s.survivors) for s in plan.selections] == [
        (2, "cluster", 6),
        (5, "cluster", 4),
        (6, "resample", 2),
        (9, "resample", 1),
    ]
    assert plan.scored_scales == (6, 9, 12)
    assert [s.operator for s in plan.selections] == [Cluster(), Cluster(), Resample(), Resample()]
    assert Resample() == Resample(potential=PotentialKind.VALUE, lambda_=10.0)


def test_effective_batches_are_those_measured_in_the_published_loop() -> None:
    plan = compile_plan(scale_schedule=INFINITY_1M)

    assert plan.population_before == (8, 8, 8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_n_multiplies_the_whole_schedule(n: int) -> None:
    assert compile_plan(scale_schedule=INFINITY_1M, n=n).survivors_after == tuple(n * k for k in PUBLISHED)
    doubled = compile_plan(scale_schedule=INFINITY_1M, n=n, batch_schedule=[2 * k for k in PUBLISHED])
    assert doubled.survivors_after == tuple(2 * n * k for k in PUBLISHED)


def test_segments_of_the_published_plan() -> None:
    segments = compile_plan(scale_schedule=INFINITY_1M).segments

    assert [(s.first_scale, s.last_scale, s.population, s.scored_scales, s.is_last) for s in segments] == [
        (0, 2, 8, (), False),
        (3, 5, 6, (), False),
        (6, 6, 4, (6,), False),
        (7, 9, 2, (9,), False),
        (10, 12, 1, (12,), True),
    ]
    assert [s.index for s in segments] == [0, 1, 2, 3, 4]
    assert [s.selection for s in segments[:-1]] == list(compile_plan(scale_schedule=INFINITY_1M).selections)


@pytest.mark.parametrize(
    ("potential", "scored", "more_decodes", "more_scores"),
    [
        ("value", (6, 9, 12), 0, 0),
        # scale 5 is decoded for the clustering anyway: DIFF adds its 6 scores, and scale 8's 2 of both
        ("diff", (5, 6, 8, 9, 12), 2, 8),
        # scales 0, 1, 3, 4, 7, 8 (8+8+6+6+2+2); 2 and 5 are decoded already (8 + 6 more scores)
        ("max", (*range(10), 12), 32, 46),
        ("sum", (*range(10), 12), 32, 46),
    ],
)
def test_potentials_ask_for_the_scores_they_read(
    potential: str, scored: tuple[int, ...], more_decodes: int, more_scores: int
) -> None:
    plan = compile_plan(scale_schedule=INFINITY_1M, potential=potential)

    assert plan.scored_scales == scored
    assert history_demand(plan) == SelectorDemand(decodes=more_decodes, embeddings=0, scores=more_scores)


def test_table_and_demand_of_the_published_plan() -> None:
    plan = compile_plan(scale_schedule=INFINITY_1M)
    rows = describe(plan)

    assert [row.tokens for row in rows] == [h * w for h, w in INFINITY_1M]
    assert [row.decodes for row in rows] == [0, 0, 8, 0, 0, 6, 4, 0, 0, 2, 0, 0, 1]
    assert [row.selection for row in rows if row.embedded] == ["cluster"] * 2
    assert selector_demand(plan) == SelectorDemand(decodes=21, embeddings=14, scores=7)


def test_raw_and_best_of_n_have_no_selection() -> None:
    raw = compile_plan(scale_schedule=INFINITY_1M, strategy="raw")
    best = compile_plan(scale_schedule=INFINITY_1M, strategy="best-of-n", n=8)

    assert (raw.survivors_after, best.survivors_after) == ((1,) * 13, (8,) * 13)
    for plan in (raw, best):
        assert plan.selections == ()
        assert plan.scored_scales == (12,)
        assert len(plan.segments) == 1
        assert plan.segments[0].is_last


def test_resampling_alone_keeps_the_population_and_resamples_where_the_paper_does() -> None:
    plan = compile_plan(scale_schedule=INFINITY_1M, strategy="resampling", n=4, lambda_=3)

    assert plan.survivors_after == (4,) * 13
    assert [(s.scale_index, s.operator.name, s.survivors) for s in plan.selections] == [
        (6, "resample", 4),
        (9, "resample", 4),
    ]
    assert plan.selections[0].operator == Resample(lambda_=3.0)


def test_resampling_at_scale_zero_reweights_without_shrinking() -> None:
    plan = compile_plan(scale_schedule=INFINITY_1M, strategy="resampling", n=4, resample_scales=[0, 6])

    assert [(s.first_scale, s.last_scale, s.population) for s in plan.segments] == [
        (0, 0, 4),
        (1, 6, 4),
        (7, 12, 4),
    ]
    assert compile_plan(
        scale_schedule=INFINITY_1M, strategy="resampling", n=4, resample_scales=[0, 6], potential="diff"
    ).scored_scales == (0, 5, 6, 12)


@pytest.mark.parametrize(
    ("cluster_scales", "resample_scales", "survivors"),
    [
        ([], [9], (8,) * 9 + (1,) * 4),
        ([], [6, 9], (8,) * 6 + (4,) * 3 + (1,) * 4),
        ([3], [8, 9], (8,) * 3 + (5,) * 5 + (3,) + (1,) * 4),
        ([1, 2, 3, 4, 5], [6, 7, 8, 9], (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1, 1, 1)),
    ],
)
def test_other_selections_get_a_schedule_in_equal_steps(
    cluster_scales: list[int], resample_scales: list[int], survivors: tuple[int, ...]
) -> None:
    plan = compile_plan(
        scale_schedule=INFINITY_1M, cluster_scales=cluster_scales, resample_scales=resample_scales
    )

    assert plan.survivors_after == survivors


def test_a_look_that_keeps_everybody_takes_no_step_of_the_schedule() -> None:
    asked = [SelectionSetting(scale=scale, operator=name) for scale, name in ((2, "keep"), (6, "top-k"))]
    plan = compile_plan(scale_schedule=INFINITY_1M, strategy="tts-var", n=2, selections=asked)
    assert plan.survivors_after == (16,) * 6 + (2,) * 7
    looks = compile_plan(scale_schedule=INFINITY_1M, strategy="tts-var", selections=asked[:1])
    assert looks.survivors_after == (8,) * 13, "nobody drops any"


def test_a_rise_is_explained() -> None:
    expected = (
        "batch_schedule[5]: expected at most 6 (population before scale 5), got 8; "
        "a population never grows: lower it, or raise the entries before it."
    )
    assert _problems(batch_schedule=[8, 8, 6, 6, 6, 8, 2, 2, 2, 1, 1, 1, 1]) == (expected,)


def test_a_fall_without_selection_is_explained() -> None:
    expected = (
        "batch_schedule[4]: expected 6 (no selection at scale 4 could drop any), got 5; "
        "raise it to 6 or add a selection at scale 4."
    )
    assert _problems(batch_schedule=[8, 8, 6, 6, 5, 4, 2, 2, 2, 1, 1, 1, 1]) == (expected,)


def test_a_clustering_that_drops_nothing_is_refused_and_a_resampling_is_not() -> None:
    keeps_at_five = [8, 8, 6, 6, 6, 6, 2, 2, 2, 1, 1, 1, 1]
    (problem,) = _problems(batch_schedule=keeps_at_five)
    assert problem.startswith("batch_schedule[5]: expected fewer than 6 (population before the clustering")

    keeps_at_six = [8, 8, 6, 6, 6, 4, 4, 4, 4, 1, 1, 1, 1]
    assert compile_plan(scale_schedule=INFINITY_1M, batch_schedule=keeps_at_six).selections[2].survivors == 4


def test_all_problems_come_at_once() -> None:
    problems = _problems(
        batch_schedule=[8, 8, 6],
        cluster_scales=[0, 2, 2, 12],
        resample_scales=[2, 40, -1],
        potential="best",
        scheme="residual",
        lambda_=float("nan"),
        cluster_restarts=0,
        n=0,
    )

    starts = [problem.split(":")[0] for problem in problems]
    assert starts == [
        "n",
        "potential",
        "lambda",
        "scheme",
        "cluster_restarts",
        "cluster_scales[0]",
        "cluster_scales[2]",
        "cluster_scales[3]",
        "cluster_scales and resample_scales",
        "resample_scales[1]",
        "resample_scales[2]",
        "batch_schedule",
    ]
    assert "expected 13 entries (one a scale), got 3; add 10." in problems[-1]


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        (
            {"strategy": "beam"},
            "strategy: expected one of raw, best-of-n, resampling, tts-var, adaptive, got 'beam'",
        ),
        ({"strategy": "adaptive", "reject_below": {3: 0.5}}, "stop_at: not given; an adaptive search stops"),
        ({"strategy": "adaptive", "stop_at": True}, "stop_at: expected a finite reward, got True"),
        (
            {"strategy": "adaptive", "stop_at": 1.0, "reject_below": {12: 0.5}},
            "reject_below: expected scales from 0 to 11 (the last scale has stop_at), got 12",
        ),
        (
            {"strategy": "adaptive", "stop_at": 1.0, "growth": [2, 4]},
            "growth: expected whole numbers of at least 1, and 1 for the first round, got [2, 4]",
        ),
        (
            {"strategy": "adaptive", "stop_at": 1.0, "max_rounds": 0},
            "max_rounds: expected a whole number of at least 1, got 0",
        ),
        (
            {"strategy": "best-of-n", "stop_at": 1.0},
            "stop_at: this best-of-n plan would not read it, got 1.0",
        ),
        ({"strategy": "raw", "n": 2}, "n: expected 1 (raw draws one image a prompt), got 2"),
        ({"strategy": "best-of-n", "n": True}, "n: expected a whole number of at least 1, got True"),
        ({"strategy": "raw", "lambda_": 3.0}, "lambda: this raw plan would not read it, got 3.0"),
        (
            {"strategy": "best-of-n", "batch_schedule": [8] * 13},
            "batch_schedule: this best-of-n plan would not",
        ),
        ({"strategy": "resampling", "cluster_scales": [2]}, "cluster_scales: this resampling plan would not"),
        ({"resample_scales": [], "potential": "sum"}, "potential: this tts-var plan would not read it"),
        (
            {"cluster_scales": [], "cluster_restarts": 3},
            "cluster_restarts: this tts-var plan would not read it",
        ),
        ({"cluster_scales": [], "resample_scales": []}, "strategy: tts-var without any selection scale"),
        ({"resample_scales": [6, 12]}, "resample_scales[1]: scale 12 is the last scale"),
        (
            {"batch_schedule": [8] * 12 + [0]},
            "batch_schedule[12]: expected a whole number of at least 1, got 0",
        ),
        ({"potential": ""}, "potential: expected one of value, diff, max, sum, got ''"),
    ],
)
def test_refusals(settings: dict[str, object], start: str) -> None:
    assert any(problem.startswith(start) for problem in _problems(**settings)), _problems(**settings)


@pytest.mark.parametrize("num_scales", [1, 2])
def test_models_with_too_few_scales_are_told_what_to_use(num_scales: int) -> None:
    schedule = ((1, 1),) * num_scales
    with pytest.raises(ConfigurationError, match=f"has only {num_scales}; use strategy best-of-n"):
        compile_plan(scale_schedule=schedule)
    assert (
        compile_plan(scale_schedule=schedule, strategy="best-of-n", n=3).survivors_after == (3,) * num_scales
    )


def test_a_model_without_scales_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected at least one scale"):
        compile_plan(scale_schedule=())
    with pytest.raises(ConfigurationError, match=r"scale_schedule\[1\]: expected a \(height, width\)"):
        compile_plan(scale_schedule=((1, 1), (0, 2)), strategy="raw")


def test_a_plan_built_around_the_compiler_is_guarded() -> None:
    with pytest.raises(AssertionError):
        Plan(
            strategy="tts-var",
            scale_schedule=INFINITY_1M,
            survivors_after=PUBLISHED,
            selections=(),
        )
