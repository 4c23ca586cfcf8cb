"""What holds for any plan, any weights, any features."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ttsvar_ray.search.describe import describe, history_demand, selector_demand
from ttsvar_ray.search.loop import Past, Seen, search
from ttsvar_ray.search.operators.cluster import cluster_survivors
from ttsvar_ray.search.operators.resample import Resample, effective_sample_size, resample
from ttsvar_ray.search.plan import Plan, Segment
from ttsvar_ray.search.strategy import compile_plan
from ttsvar_ray.types import Float64Array, Int64Array, PotentialKind, ResamplingScheme

LOG_WEIGHTS = arrays.arrays(np.float64, st.integers(1, 12), elements=st.floats(-50.0, 50.0))
SCHEMES = st.sampled_from(list(ResamplingScheme))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any valid plan: any descending schedule that falls only at selections."""
    num_scales = draw(st.integers(1, 16))
    scale_schedule = tuple((scale + 1, scale + 1) for scale in range(num_scales))
    common: dict[str, Any] = {"scale_schedule": scale_schedule, "n": draw(st.integers(1, 3))}
    kinds = draw(
        st.lists(st.sampled_from(["", "", "cluster", "resample"]), min_size=num_scales, max_size=num_scales)
    )
    kinds[-1] = ""
    if kinds[0] == "cluster":
        kinds[0] = "resample"
    if not any(kinds):
        return compile_plan(strategy="best-of-n", **common)
    population = draw(st.integers(kinds.count("cluster") + 1, 14))
    schedule = []
    for scale, kind in enumerate(kinds):
        later = kinds[scale + 1 :].count("cluster")  # each needs one to drop
        if kind and scale > 0:
            population = draw(st.integers(later + 1, population - (kind == "cluster")))
        schedule.append(population)
    resamples = [scale for scale, kind in enumerate(kinds) if kind == "resample"]
    return compile_plan(
        batch_schedule=schedule,
        cluster_scales=[scale for scale, kind in enumerate(kinds) if kind == "cluster"],
        resample_scales=resamples,
        potential=draw(st.sampled_from(list(PotentialKind))) if resamples else None,
        scheme=draw(SCHEMES) if resamples else None,
        lambda_=draw(st.floats(0.0, 20.0)) if resamples else None,
        **common,
    )


@settings(deadline=None, max_examples=60)
@given(plan=plans(), seed=st.integers(0, 2**32))
def test_any_valid_plan_runs(plan: Plan, seed: int) -> None:
    """Algorithm 1 with random pictures: every population, history and lineage has its planned size."""
    generator = np.random.default_rng(seed)
    scales: list[int] = []
    ancestors: list[Int64Array] = []
    rewards: list[Float64Array] = []

    def run_segment(segment: Segment, ancestor_index: Int64Array, round_index: int) -> Seen:
        scales.extend(range(segment.first_scale, segment.last_scale + 1))
        assert len(ancestor_index) == segment.population == plan.population_before[segment.last_scale]
        ancestors.append(ancestor_index)
        rewards.append(generator.normal(size=(segment.population, len(segment.scored_scales), 1)))
        features = generator.integers(0, 3, size=(segment.population, 2)).astype(np.float32)
        return Seen(scores=rewards[-1], features=features)

    result = search(plan, run_segment, run_seed=seed, prompt_key="prompt#0")
    (found,) = result.rounds

    assert scales == list(range(plan.num_scales))
    assert plan.segments[-1].is_last
    for selection, choice in zip(plan.selections, found.choices, strict=True):
        assert choice.ancestor_index.shape == (selection.survivors,)
        if not selection.operator.repeats:
            assert len(set(choice.ancestor_index.tolist())) == selection.survivors
        else:
            population = plan.population_before[selection.scale_index]
            assert 1.0 - 1e-9 <= float(choice.numbers["ess"]) <= population + 1e-9  # type: ignore[arg-type]
    finished, lineage = plan.survivors_after[-1], found.past.lineage
    assert found.past.reward_history.shape == (finished, len(plan.scored_scales))
    assert sorted(result.ranking) == [(0, slot) for slot in range(finished)]
    assert lineage.shape == (finished, len(plan.segments))
    np.testing.assert_array_equal(lineage[:, -1], np.arange(finished))
    for later in range(1, len(plan.segments)):
        np.testing.assert_array_equal(lineage[:, later - 1], ancestors[later][lineage[:, later]])
    seen = [rewards[segment][lineage[:, segment], :, 0] for segment in range(len(plan.segments))]
    np.testing.assert_array_equal(found.past.reward_history, np.concatenate(seen, axis=1))


@given(plan=plans())
def test_tables_agree_with_the_plan(plan: Plan) -> None:
    rows, demand, history = describe(plan), selector_demand(plan), history_demand(plan)
    assert tuple(row.population for row in rows) == plan.population_before
    assert demand.decodes <= sum(plan.population_before)
    assert demand.scores >= plan.survivors_after[-1]
    assert 0 <= history.decodes <= history.scores
    assert history.embeddings == 0
    potentials = [s.operator.potential for s in plan.selections if isinstance(s.operator, Resample)]
    if all(potential is PotentialKind.VALUE for potential in potentials):
        assert history.scores == 0


@given(
    num_scales=st.integers(3, 20), n=st.integers(1, 8), strategy=st.sampled_from(["tts-var", "resampling"])
)
def test_the_published_plan_scales_to_any_model(num_scales: int, n: int, strategy: str) -> None:
    plan = compile_plan(scale_schedule=((1, 1),) * num_scales, strategy=strategy, n=n)

    scales = [selection.scale_index for selection in plan.selections]
    kinds = [selection.operator.name for selection in plan.selections]
    assert scales[0] >= 1
    assert scales[-1] <= num_scales - 2
    assert kinds == sorted(kinds)  # clusterings come before resamplings
    assert plan.survivors_after[-1] == n
    if strategy == "tts-var":
        assert len(scales) == min(4, num_scales - 2)
        assert plan.survivors_after[0] == 8 * n
        if num_scales >= 6:
            assert [s.survivors for s in plan.selections] == [6 * n, 4 * n, 2 * n, n]
    for selection in plan.selections if num_scales >= 9 else ():
        place = {6: 2, 4: 5, 2: 6, 1: 9}.get(selection.survivors // n)
        if strategy == "tts-var" and place is not None:
            assert abs(selection.scale_index / (num_scales - 1) - place / 12) <= 1.0 / (num_scales - 1)


@given(num_scales=st.integers(3, 20), data=st.data())
def test_any_selection_scales_get_a_valid_default_schedule(num_scales: int, data: st.DataObject) -> None:
    scales = data.draw(st.sets(st.integers(1, num_scales - 2), min_size=1))
    clusters = data.draw(st.sets(st.sampled_from(sorted(scales))))
    plan = compile_plan(
        scale_schedule=((1, 1),) * num_scales,
        cluster_scales=sorted(clusters),
        resample_scales=sorted(scales - clusters),
    )
    assert [selection.scale_index for selection in plan.selections] == sorted(scales)
    assert all(plan.survivors_after[s] < plan.population_before[s] for s in scales)
    assert plan.survivors_after[-1] == 1


@given(
    log_weights=LOG_WEIGHTS,
    shift=st.integers(-(2**20), 2**20),
    survivors=st.integers(1, 16),
    seed=st.integers(0, 2**32),
    scheme=SCHEMES,
)
def test_a_common_shift_changes_nothing(
    log_weights: Float64Array, shift: int, survivors: int, seed: int, scheme: ResamplingScheme
) -> None:
    # on a grid of 2^-20 both the weights and the shifted ones are exact, and so is the invariance
    log_weights = np.round(log_weights * 2.0**20) / 2.0**20
    plain = resample(log_weights, survivors, np.random.default_rng(seed), scheme)
    shifted = resample(log_weights + shift, survivors, np.random.default_rng(seed), scheme)
    np.testing.assert_array_equal(plain, shifted)
    assert effective_sample_size(log_weights) == effective_sample_size(log_weights + shift)


@given(log_weights=LOG_WEIGHTS, survivors=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_systematic_counts_are_the_floor_or_the_ceiling(
    log_weights: Float64Array, survivors: int, seed: int
) -> None:
    drawn = resample(log_weights, survivors, np.random.default_rng(seed), ResamplingScheme.SYSTEMATIC)
    counts = np.bincount(drawn, minlength=len(log_weights))
    weights = np.exp(log_weights - log_weights.max())
    expected = survivors * weights / weights.sum()
    rounding = 1e-9  # an expectation of exactly 2 may come out as 2 - 1e-16
    assert (counts >= np.floor(expected - rounding)).all()
    assert (counts <= np.ceil(expected + rounding)).all()


@given(log_weights=LOG_WEIGHTS)
def test_effective_sample_size_is_between_one_and_the_population(log_weights: Float64Array) -> None:
    assert 1.0 - 1e-9 <= effective_sample_size(log_weights) <= len(log_weights) + 1e-9


@pytest.mark.parametrize("scheme", list(ResamplingScheme))
def test_equal_weights_are_uniform(scheme: ResamplingScheme) -> None:
    """lambda = 0: a chi-square of 20 000 draws stays below its 1 - 1e-6 quantile (7 degrees: 40.5)."""
    generator = np.random.default_rng(7)
    drawn = np.concatenate([resample(np.zeros(8), 1, generator, scheme) for _ in range(20_000)])
    counts = np.bincount(drawn, minlength=8)
    assert (np.square(counts - 2500) / 2500).sum() < 40.5


@given(data=st.data(), sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6))
def test_lineages_compose(data: st.DataObject, sizes: list[int]) -> None:
    plan = compile_plan(scale_schedule=((1, 1),), strategy="raw")
    past = Past.empty(sizes[0]).grown(np.arange(sizes[0]), Seen(scores=np.empty((sizes[0], 0, 1))), plan)
    folded = np.arange(sizes[0])
    for before, after in itertools.pairwise(sizes):
        chosen = data.draw(st.lists(st.integers(0, before - 1), min_size=after, max_size=after))
        past = past.grown(np.array(chosen), Seen(scores=np.empty((after, 0, 1))), plan)
        folded = folded[chosen]
    assert past.lineage.shape == (sizes[-1], len(sizes))
    np.testing.assert_array_equal(past.lineage[:, 0], folded)
    np.testing.assert_array_equal(past.lineage[:, -1], np.arange(sizes[-1]))


@settings(deadline=None, max_examples=60)
@given(
    features=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(1, 4)),
        elements=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-(2.0**100), 2.0**100, width=32)),
    ),
    data=st.data(),
)
def test_clustering_always_returns_distinct_slots_and_keeps_distinct_images(
    features: np.ndarray, data: st.DataObject
) -> None:
    survivors = data.draw(st.integers(1, len(features)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ancestor_index, labels = cluster_survivors(
            features, survivors, np.random.default_rng(data.draw(st.integers(0, 99)))
        )
    assert ancestor_index.shape == (survivors,)
    assert labels.shape == (len(features),)
    assert (np.diff(ancestor_index) > 0).all()
    assert set(labels.tolist()) == set(range(labels.max() + 1)), "a cluster came back empty"
    assert set(labels[ancestor_index].tolist()) == set(labels.tolist()), "a cluster lost its representative"
    scaled = features.astype(np.float64) / max(float(np.abs(features).max()), 1.0)
    distinct = len(np.unique(scaled, axis=0))
    assume(distinct <= survivors)
    assert len(np.unique(scaled[ancestor_index], axis=0)) == distinct
