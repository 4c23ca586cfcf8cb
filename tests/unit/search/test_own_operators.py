"""Selections from settings, and operators of one's own: what is refused, where and how."""

from __future__ import annotations

import enum
import re
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.support.plans import SEVEN_SCALES, chosen, plan_with
from ttsvar_ray.errors import ConfigurationError, SelectionError
from ttsvar_ray.search.operators.diverse_top_k import DiverseTopK
from ttsvar_ray.search.operators.options import option
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Operator, Signal
from ttsvar_ray.search.operators.registry import operator_class, own_sources
from ttsvar_ray.search.operators.resample import Resample
from ttsvar_ray.search.operators.top_k import TopK
from ttsvar_ray.search.strategy import SelectionSetting, compile_plan

ROOT = Path(__file__).parents[3]


def problems_of(*selections: SelectionSetting, **settings: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        compile_plan(scale_schedule=SEVEN_SCALES, selections=selections, **settings)
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
        (_Answer(KeyError("lost")), "failed (KeyError: 'lost' [test_own_operators.py, line "),
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
    "@dataclass\nclass no_class(Operator):\n    name, reads = 'mine', frozenset()\n"
    "    def select(self, e, c, r): ...\n": "expected a frozen dataclass",
    "def made():\n    @dataclass(frozen=True)\n    class Mine(Operator):\n"
    "        name, reads = 'mine', frozenset()\n"
    "        def select(self, e, c, r): ...\n    return Mine\n"
    "no_class = made()": "expected a class that workers can import, got made.<locals>.Mine, of a function",
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
    (problem,) = problems_of(SelectionSetting(scale=3, operator=operator, options=options))
    assert re.sub(r" \[test_own_operators.py, line \d+\]", "", problem) == f"selections[0]: {said}"


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
    problems = problems_of(SelectionSetting(scale=3, operator=TopK))  # type: ignore[arg-type]
    assert problems == ["selections[0].operator: expected an operator, got the class TopK; make one of it"]


def test_sources_of_own_operators_are_digested_and_those_of_the_package_are_not() -> None:
    assert own_sources([TopK(), Resample(), DiverseTopK()]) == {}
    (name,) = own_sources([Unruly(returns=None), TopK()])
    assert name.endswith("test_own_operators:Unruly")
    assert operator_class("top-k", setting="here") is TopK


def test_the_example_of_ones_own_operator_runs() -> None:
    example = runpy.run_path(str(ROOT / "docs" / "examples" / "own_operator.py"))
    assert example["mean_reward"](8, prompts=30) > example["mean_reward"](2, prompts=30)
