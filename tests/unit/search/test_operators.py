"""Operators: what each reads, whom it keeps, what it writes down; and what is refused, where and how."""

from __future__ import annotations

import enum
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from ttsvar_ray.errors import ConfigurationError, SelectionError
from ttsvar_ray.search.describe import selector_demand
from ttsvar_ray.search.operators.distances import gaussian_kernel
from ttsvar_ray.search.operators.diverse_top_k import DiverseTopK
from ttsvar_ray.search.operators.options import make_operator, option
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal
from ttsvar_ray.search.operators.registry import OPERATORS, operator_class, own_sources
from ttsvar_ray.search.operators.resample import Resample
from ttsvar_ray.search.operators.top_k import TopK
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.search.selection import select
from ttsvar_ray.search.strategy import SelectionSetting, compile_plan
from ttsvar_ray.types import PotentialKind

ROOT = Path(__file__).parents[3]
SCALES = tuple((side, side) for side in range(1, 8))
SCHEDULE = (6, 6, 6, 3, 3, 3, 3)
RNG = np.random.default_rng(0)


def plan_with(operator: str | Operator, **options: Any) -> Plan:
    setting = SelectionSetting(scale=3, operator=operator, options=options)
    return compile_plan(scale_schedule=SCALES, batch_schedule=SCHEDULE, selections=[setting])


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


def test_keep_keeps_everybody_and_has_them_scored() -> None:
    settings = [SelectionSetting(scale=3, operator="keep")]
    plan = compile_plan(scale_schedule=SCALES, batch_schedule=[4] * 7, selections=settings)
    choice = chosen(plan, [0.5, 2.0, 0.5, -1.0])
    assert choice.ancestor_index.tolist() == [0, 1, 2, 3]
    assert selector_demand(plan).scores == 8
    with pytest.raises(ConfigurationError, match=r"batch_schedule\[3\]: expected 4 \(keep at scale 3 drops"):
        compile_plan(scale_schedule=SCALES, batch_schedule=[4, 4, 4, 2, 2, 2, 2], selections=settings)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "keep"])
def test_every_operator_keeps_its_contract(name: str) -> None:
    plan = plan_with(name)
    operator = plan.selections[0].operator
    assert operator.name == name
    assert hash(operator) == hash(make_operator(type(operator), {}, setting="here"))
    generator = np.random.default_rng(1)
    features = generator.normal(size=(6, 4)).astype(np.float32)
    rewards = generator.normal(size=6).tolist()
    first, second = (chosen(plan, rewards, features) for _ in range(2))
    np.testing.assert_array_equal(first.ancestor_index, second.ancestor_index)
    assert first.ancestor_index.shape == (3,)
    assert operator.repeats or len(set(first.ancestor_index.tolist())) == 3
    demand = selector_demand(plan)
    assert (demand.embeddings > 0) == (Signal.FEATURES in operator.reads)
    assert (demand.scores > 3) == (Signal.REWARDS in operator.reads)


def test_top_k_keeps_the_best_and_of_equals_the_lower_slots() -> None:
    choice = chosen(plan_with("top-k"), [0.5, 2.0, 0.5, -1.0, 2.0, 0.5])
    assert choice.ancestor_index.tolist() == [0, 1, 4]
    assert np.asarray(choice.numbers["potential"]).tolist() == [0.5, 2.0, 0.5, -1.0, 2.0, 0.5]


def test_top_k_reads_what_its_potential_reads() -> None:
    assert plan_with("top-k").scored_scales == (3, 6)
    assert plan_with("top-k", potential="diff").scored_scales == (2, 3, 6)
    assert plan_with("top-k", potential="sum").scored_scales == (0, 1, 2, 3, 6)


def test_operators_of_one_plan_see_their_own_columns() -> None:
    plan = compile_plan(
        scale_schedule=SCALES,
        batch_schedule=(4, 4, 2, 2, 1, 1, 1),
        selections=[
            SelectionSetting(scale=2, operator="top-k", options={"potential": "sum"}),
            SelectionSetting(scale=4, operator="top-k", options={"potential": "diff"}),
        ],
    )
    assert plan.scored_scales == (0, 1, 2, 3, 4, 6)
    history = np.array([[9.0, 9.0, 9.0, 9.0, 8.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    choice = select(
        plan, plan.selections[1], features=None, reward_history=history, run_seed=0, prompt_key="a#0"
    )
    assert np.asarray(choice.numbers["potential"]).tolist() == [-1.0, 1.0]
    assert choice.ancestor_index.tolist() == [1]


TWINS = np.array([[0.0, 0.0], [0.0, 0.1], [9.0, 0.0], [9.0, 0.1], [0.0, 9.0], [0.0, 9.1]])
REWARDS = [5.0, 4.9, 4.0, 3.9, 3.0, 2.9]


@pytest.mark.parametrize(("trade_off", "kept"), [(1.0, [0, 1, 2]), (0.3, [0, 2, 4]), (0.0, [0, 3, 5])])
def test_diverse_top_k_trades_promise_for_difference(trade_off: float, kept: list[int]) -> None:
    choice = chosen(plan_with("diverse-top-k", trade_off=trade_off), REWARDS, TWINS)
    assert choice.ancestor_index.tolist() == kept
    place = np.asarray(choice.numbers["place"])
    assert sorted(place[kept].tolist()) == [0, 1, 2]
    assert (place >= 0).sum() == 3
    assert place[0] == 0, "the most promising one is kept first"


@pytest.mark.parametrize(("factor", "shift"), [(1e-6, 0.0), (1e6, 3.0)])
def test_diverse_top_k_does_not_depend_on_units(factor: float, shift: float) -> None:
    plan = plan_with("diverse-top-k", trade_off=0.4)
    expected = chosen(plan, REWARDS, TWINS).ancestor_index
    scaled = chosen(plan, [factor * reward + shift for reward in REWARDS], TWINS * factor)
    np.testing.assert_array_equal(scaled.ancestor_index, expected)


def test_diverse_top_k_of_what_is_all_alike_keeps_the_lowest_slots() -> None:
    choice = chosen(plan_with("diverse-top-k"), [1.0] * 6, np.ones((6, 2)))
    assert choice.ancestor_index.tolist() == [0, 1, 2]


def test_likelihood_keeps_the_surest_without_a_decode() -> None:
    plan = plan_with("likelihood")
    assert plan.needs_likelihood
    assert selector_demand(plan).decodes == 3, "the final images alone"
    choice = chosen(plan, [0.5, 2.0, 0.5, -1.0, 2.0, 0.5])
    assert choice.ancestor_index.tolist() == [0, 1, 4]
    assert np.asarray(choice.numbers["log_likelihood"])[3] == -101.0
    assert not plan_with("top-k").needs_likelihood
    bad = [0.0, float("nan"), 0.0, 0.0, 0.0, 0.0]
    with pytest.raises(SelectionError, match=r"log_likelihood: expected finite numbers, .* slots \[1\]"):
        chosen(plan, bad)


LINE = np.array([[0.0], [1.0], [2.0], [2.0], [9.0], [10.0]])


def test_farthest_point_begins_in_the_middle_and_spreads() -> None:
    choice = chosen(plan_with("farthest-point"), REWARDS, LINE)
    assert choice.ancestor_index.tolist() == [0, 2, 5]
    assert np.asarray(choice.numbers["place"]).tolist() == [2, -1, 0, -1, -1, 1]


def test_dpp_keeps_the_set_of_the_largest_determinant() -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        features = generator.normal(size=(6, 3))
        kept = chosen(plan_with("dpp"), REWARDS, features).ancestor_index
        kernel = gaussian_kernel(features, 1.0)
        first = [0]
        for _ in range(2):
            worth = [
                -1.0 if one in first else np.linalg.det(kernel[np.ix_([*first, one], [*first, one])])
                for one in range(6)
            ]
            first.append(int(np.argmax(worth)))
        assert kept.tolist() == sorted(first)


@pytest.mark.parametrize("name", ["dpp", "farthest-point", "density", "cluster-best"])
def test_coinciding_images_leave_distinct_slots(name: str) -> None:
    choice = chosen(plan_with(name), [1.0] * 6, np.ones((6, 2)))
    assert choice.ancestor_index.tolist() == [0, 1, 2]


def test_density_keeps_what_is_common_and_draws_the_rest() -> None:
    features = np.array([[50.0], [0.0], [0.1], [0.2], [90.0], [-70.0]])
    choice = chosen(plan_with("density"), REWARDS, features)
    assert choice.ancestor_index.tolist() == [1, 2, 3]
    density = np.asarray(choice.numbers["density"])
    assert density[2] > density[1] > density[0] > 0
    drawn = [
        chosen(plan_with("density", random_share=0.5), REWARDS, features, seed).ancestor_index.tolist()
        for seed in range(40)
    ]
    assert all(2 in kept for kept in drawn), "two of the densest are always kept"
    assert {slot for kept in drawn for slot in kept} >= {0, 4, 5}


def test_cluster_best_keeps_the_best_of_each_cluster_wherever_it_lies() -> None:
    features = np.array([[0.0], [1.0], [2.0], [50.0], [51.0], [90.0]])
    rewards = [0.9, 0.1, 0.5, -1.0, -2.0, -9.0]
    assert chosen(plan_with("cluster-best"), rewards, features).ancestor_index.tolist() == [0, 3, 5]
    assert chosen(plan_with("cluster"), rewards, features).ancestor_index.tolist() == [1, 3, 5]


@pytest.mark.parametrize("normalise", ["z-score", "rank"])
def test_normalised_potentials_do_not_depend_on_units(normalise: str) -> None:
    plan = plan_with("resample", normalise=normalise)
    rewards = [0.1, 0.4, 0.3, 0.3, -2.0, 0.0]
    weights = np.asarray(chosen(plan, rewards).numbers["log_weights"])
    scaled = np.asarray(chosen(plan, [1000 * one + 7 for one in rewards]).numbers["log_weights"])
    np.testing.assert_allclose(weights, scaled, rtol=1e-9, atol=1e-9)
    if normalise == "rank":
        np.testing.assert_allclose(weights, [4.0, 10.0, 7.0, 7.0, 0.0, 2.0])
    else:
        assert (weights.mean(), weights.std()) == (pytest.approx(0, abs=1e-9), pytest.approx(10))
    raw = np.asarray(chosen(plan_with("resample"), rewards).numbers["log_weights"])
    np.testing.assert_allclose(raw, 10 * np.array(rewards))


def test_a_list_of_lambdas_goes_to_the_resamplings_by_scale() -> None:
    plan = compile_plan(scale_schedule=SCALES, resample_scales=[4, 2], cluster_scales=[1], lambda_=[3, 7])
    found = {one.scale_index: one.operator for one in plan.selections}
    assert found[2] == Resample(lambda_=3.0)
    assert found[4] == Resample(lambda_=7.0)
    with pytest.raises(ConfigurationError) as raised:
        compile_plan(scale_schedule=SCALES, resample_scales=[4], cluster_scales=[], lambda_=[3, 7])
    assert "lambda: expected one number, or one for each of the plan's 1 resamplings" in str(raised.value)
    with pytest.raises(ConfigurationError, match=r"lambda\[1\]: expected a finite number of at least 0"):
        compile_plan(scale_schedule=SCALES, resample_scales=[2, 4], cluster_scales=[], lambda_=[3, -7])


def test_one_setting_gives_an_option_to_all_and_an_entry_its_own() -> None:
    plan = compile_plan(
        scale_schedule=SCALES,
        lambda_=3.0,
        selections=[
            SelectionSetting(scale=2, operator="resample"),
            SelectionSetting(scale=4, operator="resample", options={"lambda": 7, "potential": "max"}),
        ],
    )
    assert [selection.operator for selection in plan.selections] == [
        Resample(lambda_=3.0),
        Resample(lambda_=7.0, potential=PotentialKind.MAX),
    ]


def problems_of(*selections: SelectionSetting, **settings: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        compile_plan(scale_schedule=SCALES, selections=selections, **settings)
    return list(raised.value.problems)


def test_all_problems_of_selections_come_at_once() -> None:
    problems = problems_of(
        SelectionSetting(scale=2, operator="topk"),
        SelectionSetting(scale=0, operator="top-k", options={"potentail": "sum"}),
        SelectionSetting(scale=6, operator="diverse-top-k", options={"trade_off": 1.5}),
        SelectionSetting(scale=2, operator="resample", options={"lambda": "much"}),
    )
    starts = [
        "selections[0].operator: expected cluster, cluster-best, farthest-point, dpp, density, ",
        "selections[1].options.potentail: operator top-k has no such option; did you mean 'potential'?",
        "selections[2].options.trade_off: expected a finite number from 0 to 1, got 1.5; 1 is top-k",
        "selections[3].options.lambda: expected a finite number of at least 0, got 'much'",
        "selections[1]: top-k at scale 0 cannot drop anything",
        "selections[2]: scale 6 is the last scale",
        "selections[3]: scale 2 is listed twice",
    ]
    for problem, start in zip(problems, starts, strict=True):
        assert problem.startswith(start)
    assert "did you mean 'top-k'?" in problems[0]


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        (
            {"resample_scales": [4]},
            "selections: expected all selections of the plan there, got resample",
        ),
        ({"lambda_": 3.0}, "lambda: this tts-var plan would not read it, got 3.0"),
        ({"strategy": "resampling"}, "selections: this resampling plan would not read it"),
        (
            {"batch_schedule": (6, 6, 6, 6, 3, 3, 3)},
            "batch_schedule[2]: expected fewer than 6 (population before the top-k at scale 2)",
        ),
    ],
)
def test_settings_beside_selections_are_refused(settings: dict[str, Any], start: str) -> None:
    problems = problems_of(SelectionSetting(scale=2, operator="top-k"), **settings)
    assert any(problem.startswith(start) for problem in problems), problems


@dataclass(frozen=True, kw_only=True)
class Unruly(Operator):
    """Does what it is told, however wrong."""

    name: ClassVar[str] = "unruly"
    reads: ClassVar[frozenset[Signal]] = frozenset()

    returns: Any = None

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        assert evidence.features is None
        assert evidence.reward_history is None
        found: Choice = self.returns(count)
        return found


class _Answer:
    """A function that can be hashed and compared, as options must be."""

    def __init__(self, ancestors: Any, **numbers: Any) -> None:
        self.ancestors, self.numbers = ancestors, numbers

    def __call__(self, count: int) -> Any:
        if isinstance(self.ancestors, Exception):
            raise self.ancestors
        if self.ancestors is None:
            return None
        return Choice(ancestor_index=np.array(self.ancestors), numbers=self.numbers)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (_Answer(None), "expected a Choice, got NoneType"),
        (_Answer([0, 1]), "ancestor_index: expected 3 whole numbers, got int64 of shape (2,)"),
        (_Answer([0.0, 1.0, float("nan")]), "ancestor_index: expected 3 whole numbers, got float64"),
        (_Answer([0, 1, 6]), "ancestor_index: expected slots from 0 to 5, got [0, 1, 6]"),
        (_Answer([0, -1, 2]), "ancestor_index: expected slots from 0 to 5, got [0, -1, 2]"),
        (_Answer([0, 1, 1]), "ancestor_index: expected distinct slots, because `repeats` is False"),
        (_Answer([0, 1, 2], gain=float("nan")), "numbers['gain']: expected finite numbers"),
        (_Answer([0, 1, 2], gain=[1.0, 2.0]), "numbers['gain']: expected one number or one for each of 6"),
        (_Answer([0, 1, 2], gain="much"), "numbers['gain']: expected numbers, got 'much'"),
        (_Answer(KeyError("lost")), "failed (KeyError: 'lost')"),
        (lambda count: Choice(ancestor_index=[[0], [1, 2]]), "failed (ValueError: "),
        (lambda count: Choice(ancestor_index=range(count), numbers=[1.0]), "failed (AttributeError: "),
        (lambda count: Choice(ancestor_index=range(count), numbers={3: 1.0}), "numbers: expected text as "),
    ],
)
def test_what_an_operator_does_wrong_is_said_with_its_name_and_scale(answer: Any, said: str) -> None:
    plan = plan_with(Unruly(returns=answer))
    with pytest.raises(SelectionError) as raised:
        chosen(plan, [0.0] * 6)
    assert str(raised.value).startswith(f"operator unruly at scale 3: {said}")


def test_an_unordered_choice_is_put_in_order() -> None:
    choice = chosen(plan_with(Unruly(returns=_Answer([5, 0, 2], gain=1))), [0.0] * 6)
    assert choice.ancestor_index.tolist() == [0, 2, 5]
    assert float(choice.numbers["gain"]) == 1.0  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Drawn(Operator):
    """Writes down what it draws."""

    name: ClassVar[str] = "drawn"
    reads: ClassVar[frozenset[Signal]] = frozenset()

    def select(self, evidence: Evidence, count: int, rng: np.random.Generator) -> Choice:
        return Choice(ancestor_index=np.arange(count), numbers={"at": rng.random()})


@dataclass(frozen=True, kw_only=True)
class Other(Drawn):
    """The same under another name."""

    name: ClassVar[str] = "other"


def test_streams_are_named_by_the_operator() -> None:
    draws = [
        float(chosen(plan_with(operator), [0.0] * 6).numbers["at"])  # type: ignore[arg-type]
        for operator in (Drawn(), Drawn(), Other())
    ]
    assert draws[0] == draws[1] != draws[2]


OWN = {
    "no_class = 3": "has no select, scored_scales, describe",
    "class no_class(Operator):\n    name, reads = 'mine', frozenset()\n"
    "    def select(self, e, c, r): ...": "expected a frozen dataclass",
    "class no_class: pass": "has no select, scored_scales, describe",
    "@dataclass(frozen=True)\nclass no_class(Operator):\n    name = 'mine'\n"
    "    reads = frozenset()": "expected a method select",
    "@dataclass(frozen=True)\nclass no_class(Operator):\n"
    "    def select(self, e, c, r): ...": "expected a name, a text in the class, got None",
    "@dataclass(frozen=True)\nclass no_class(Operator):\n    name = 'top-k'\n    reads = {'rewards'}\n"
    "    def select(self, e, c, r): ...": "got that of a built-in operator, 'top-k'",
}


@pytest.mark.parametrize(("source", "said"), list(OWN.items()))
def test_what_is_no_operator_is_refused_before_anything_runs(
    source: str, said: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"own_{abs(hash(source))}"
    head = "from dataclasses import dataclass\nfrom ttsvar_ray.search.operators.protocol import Operator\n"
    (tmp_path / f"{name}.py").write_text(head + source + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    problems = problems_of(SelectionSetting(scale=2, operator=f"{name}:no_class"))
    assert all(problem.startswith("selections[0].operator: ") for problem in problems)
    assert any(said in problem for problem in problems), problems


@dataclass(frozen=True, kw_only=True)
class Odd(Unruly):
    """Answers what it is told to when it is asked what it reads, and how it is described."""

    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.REWARDS})

    scored: Any = (3,)
    described: Any = ""

    def __post_init__(self) -> None:
        if self.described == "refused":
            raise KeyError("no such thing")

    def scored_scales(self, scale_index: int) -> tuple[int, ...]:
        if self.scored == "raise":
            raise KeyError("lost")
        found: tuple[int, ...] = self.scored
        return found

    def describe(self) -> str:
        found: str = self.described
        return found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scored": None}, "operator unruly: scored_scales: expected scales from 0 to 3, got None"),
        ({"scored": ()}, "operator unruly: scored_scales: expected scales from 0 to 3, got ()"),
        ({"scored": (4,)}, "operator unruly: scored_scales: expected scales from 0 to 3, got (4,)"),
        ({"scored": "raise"}, "operator unruly: fails before anything is selected (KeyError: 'lost')"),
        ({"described": 3}, "operator unruly: describe: expected a text, got 3"),
        ({"described": "refused"}, "operator unruly refuses its options (KeyError: 'no such thing')"),
    ],
)
def test_an_operator_that_cannot_say_what_it_reads_is_refused(options: dict[str, Any], said: str) -> None:
    operator = f"{Odd.__module__}:Odd"
    assert problems_of(SelectionSetting(scale=3, operator=operator, options=options)) == [
        f"selections[0]: {said}"
    ]


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True, kw_only=True)
class Levelled(Unruly):
    """Has options of other kinds."""

    level: Level = Level.LOW
    share: float = option(0.5, most=1)


def test_options_of_every_kind_are_read() -> None:
    path = f"{Levelled.__module__}:Levelled"
    made = plan_with(path, level=2, share=np.float32(0.25)).selections[0].operator
    assert made == Levelled(level=Level.HIGH, share=0.25)
    assert problems_of(SelectionSetting(scale=3, operator=path, options={"level": 3, "share": 10**400})) == [
        "selections[0].options.level: expected one of 1, 2, got 3; choose one of them.",
        f"selections[0].options.share: expected a finite number of at most 1, got {10**400}; correct it.",
    ]


def test_scores_that_an_operator_does_not_read_are_refused() -> None:
    class Wasteful(Unruly):
        def scored_scales(self, scale_index: int) -> tuple[int, ...]:
            return (scale_index,)

    (problem,) = problems_of(SelectionSetting(scale=3, operator=Wasteful()))
    assert "scored_scales: expected none, because it reads no rewards, got (3,)" in problem


def test_an_object_that_is_no_operator_is_refused() -> None:
    problems = problems_of(SelectionSetting(scale=3, operator=object()))  # type: ignore[arg-type]
    assert problems[0].startswith("selections[0].operator: expected a frozen dataclass")


def test_sources_of_own_operators_are_digested_and_those_of_the_package_are_not() -> None:
    assert own_sources([TopK(), Resample(), DiverseTopK()]) == {}
    (name,) = own_sources([Unruly(returns=None), TopK()])
    assert name.endswith("test_operators:Unruly")
    assert operator_class("top-k", setting="here") is TopK


def test_the_example_of_ones_own_operator_runs() -> None:
    example = runpy.run_path(str(ROOT / "docs" / "examples" / "own_operator.py"))
    assert example["mean_reward"](8, prompts=30) > example["mean_reward"](2, prompts=30)
