"""Strategies: presets of one plan, compiled from settings.

raw          one trajectory, no selection
best-of-n    n trajectories to the end, the best by reward
resampling   n trajectories throughout, resampled with replacement at fine scales
tts-var      many coarse trajectories, few fine ones: clustering, then resampling; or any operators
adaptive     rounds, of one trajectory or like tts-var: given up early where they promise little, and no
             more of them once an image is good enough
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ttsvar_ray.errors import ConfigurationError, noting
from ttsvar_ray.search.operators.keep import Keep
from ttsvar_ray.search.operators.options import make_operator, option_problems
from ttsvar_ray.search.operators.protocol import Operator, Signal
from ttsvar_ray.search.operators.registry import class_problems, is_built_in, operator_class
from ttsvar_ray.search.operators.resample import Resample
from ttsvar_ray.search.plan import FinalChoice, Plan, Rounds, Selection
from ttsvar_ray.search.presets import FEWEST_SCALES, default_batch_schedule, published_selections
from ttsvar_ray.search.principal_component import ComponentSign
from ttsvar_ray.search.validation import (
    WantedSelection,
    batch_schedule_problems,
    check_answers,
    is_whole_number,
    looks_of,
    require_a_final_choice,
    rounds_problems,
    scale_schedule_problems,
    selection_scale_problems,
)
from ttsvar_ray.types import PotentialKind, ResamplingScheme, ScaleSchedule

OLD_RESAMPLING = "importance"
"""What resampling alone was called: it is an arm of the paper's Table 3, not what its Table 6 calls
importance sampling."""


class Strategy(str, enum.Enum):
    """The presets."""

    RAW = "raw"
    BEST_OF_N = "best-of-n"
    RESAMPLING = "resampling"
    TTS_VAR = "tts-var"
    ADAPTIVE = "adaptive"

    @classmethod
    def _missing_(cls, value: object) -> Strategy | None:
        return cls.RESAMPLING if value == OLD_RESAMPLING else None

    @property
    def has_schedule(self) -> bool:
        """Whether its populations and selections are a matter of settings."""
        return self in (Strategy.TTS_VAR, Strategy.ADAPTIVE)

    @property
    def settings(self) -> frozenset[str]:
        """The settings that its plans may read; which of them one reads, its selections say."""
        shared = (name for name in _SHARED if f"{name}_scales" in _READS[self])
        return _READS[self].union(*(_SHARED[name].values() for name in shared))


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionSetting:
    """Which operator stands at a scale.

    Attributes:
        operator: its name, the import path of one's own, or the operator itself.
        options: of an operator that is named; those that are missing come from the settings of all
            selections (`potential`, `lambda_`, `scheme`, `cluster_restarts`) or are its defaults.
    """

    scale: int
    operator: str | Operator
    options: Mapping[str, Any] = field(default_factory=dict)


_READS = {
    Strategy.RAW: frozenset[str](),
    Strategy.BEST_OF_N: frozenset[str](),
    Strategy.RESAMPLING: frozenset({"resample_scales"}),
    Strategy.TTS_VAR: frozenset({"batch_schedule", "cluster_scales", "resample_scales", "selections"}),
    Strategy.ADAPTIVE: frozenset(
        {"batch_schedule", "cluster_scales", "resample_scales", "selections"}
        | {"max_rounds", "growth", "reject_below", "stop_at"}
    ),
}
_SHARED = {
    "resample": {"potential": "potential", "lambda": "lambda", "scheme": "scheme"},
    "cluster": {"restarts": "cluster_restarts"},
}
"""Options that one setting gives to all selections by an operator: the setting of each."""


def compile_plan(
    *,
    scale_schedule: ScaleSchedule,
    strategy: Strategy | str = Strategy.TTS_VAR,
    n: int = 1,
    batch_schedule: Sequence[int] | None = None,
    cluster_scales: Sequence[int] | None = None,
    resample_scales: Sequence[int] | None = None,
    selections: Sequence[SelectionSetting] | None = None,
    potential: PotentialKind | str | None = None,
    lambda_: float | Sequence[float] | None = None,
    scheme: ResamplingScheme | str | None = None,
    cluster_restarts: int | None = None,
    joint_component: ComponentSign | None = None,
    max_rounds: int | None = None,
    growth: Sequence[int] | None = None,
    reject_below: Mapping[int, float] | None = None,
    stop_at: float | None = None,
    final: FinalChoice | None = None,
    map_scales: Sequence[int] | None = None,
    look_ahead: Mapping[int, int] | None = None,
) -> Plan:
    """Return the plan that these settings mean for a model, or say everything that is wrong with them.

    None means the preset's own choice. A setting that this plan would not read is refused.

    Args:
        scale_schedule: the model's (h, w) tokens per scale.
        n: the N of the paper, >= 1: for best-of-n and resampling the population, for tts-var the
            factor of the whole batch schedule.
        batch_schedule: survivors after each scale for N = 1 (tts-var), multiplied by n. By default
            the published 8 8 6 6 6 4 2 2 2 1 1 1 1; for other selections, equal steps from 8 to 1.
        cluster_scales, resample_scales: selection scales; by default the published ones, scaled to
            the model's number of scales. An empty list means none.
        selections: all selections of the plan, in place of those two (tts-var).
        potential: of resampling: value (default), diff, max or sum.
        lambda_: of resampling: sharpness of the potential, >= 0, by default 10; or one for each resampling,
            by ascending scale.
        scheme: of resampling: multinomial (default), systematic or stratified.
        cluster_restarts: of clustering: k-means restarts, >= 1, by default 10.
        joint_component: how the extractor's features are reduced (`Plan.joint_component`); not read by a
            plan whose selections read no features.
        max_rounds: of an adaptive search, >= 1, by default 8.
        growth: by how much the population of each round is multiplied, 1 first; the last entry holds for all
            later rounds. By default 1 for all.
        reject_below: rewards by scale (`Rounds.reject_below`).
        stop_at: reward of a final image (`Rounds.stop_at`); an adaptive search must have one.
        final: how final images are ranked; None: by reward.
        map_scales: whose rewards are read off the feature map (`Look`).
        look_ahead: scale that trajectories are run on to, by the scale whose rewards are had so (`Look`).

    Raises:
        ConfigurationError: with every problem found.

    Source: TTS-VAR (arXiv 2507.18537), Algorithm 1 and its experiments; resampling and best-of-n are
        its baselines.
    Differs: the published code checks nothing here, and fails after the work where a schedule falls
        at a scale without a selection.
    """
    problems = scale_schedule_problems(scale_schedule)
    try:
        name = Strategy(strategy)
    except ValueError:
        names = ", ".join(member.value for member in Strategy)
        problems.append(f"strategy: expected one of {names}, got {strategy!r}; choose one of them.")
        name = None
    if not is_whole_number(n) or n < 1:
        problems.append(f"n: expected a whole number of at least 1, got {n!r}; correct it.")
    each_lambda = tuple(lambda_) if isinstance(lambda_, (list, tuple)) else None
    shared = {
        "potential": potential,
        "lambda": None if each_lambda is not None else lambda_,
        "scheme": scheme,
        "cluster_restarts": cluster_restarts,
    }
    problems += _shared_problems(shared)
    if not scale_schedule or name is None:
        raise ConfigurationError(problems)

    num_scales = len(scale_schedule)
    given: dict[str, Any] = {
        "batch_schedule": batch_schedule,
        "cluster_scales": cluster_scales,
        "resample_scales": resample_scales,
        "selections": selections and [one.operator for one in selections],
        "max_rounds": max_rounds,
        "growth": growth,
        "reject_below": reject_below,
        "stop_at": stop_at,
    }
    wanted = _wanted(name, num_scales, cluster_scales, resample_scales, selections, problems)
    if each_lambda is not None:
        wanted = _with_lambdas(wanted, each_lambda, problems)
    problems += _missing_selections(name, num_scales, n, bool(wanted))
    problems += _unread_settings(name, given, shared, wanted)
    problems += selection_scale_problems(num_scales, wanted)
    if name is Strategy.ADAPTIVE:
        problems += rounds_problems(
            num_scales, max_rounds=max_rounds, growth=growth, reject_below=reject_below, stop_at=stop_at
        )
    problems += [
        f"final_mean_of: expected scales from 0 to {num_scales - 1}, got {scale}; correct or remove it."
        for scale in (final or FinalChoice()).mean_of
        if scale >= num_scales
    ]
    if batch_schedule is not None and name.has_schedule:
        problems += batch_schedule_problems(num_scales, batch_schedule, wanted)
    operators = {} if problems else _make_operators(wanted, shared, problems)
    if problems:
        raise ConfigurationError(problems)

    if not name.has_schedule or (name is Strategy.ADAPTIVE and not wanted and batch_schedule is None):
        schedule = (1,) * num_scales
    elif batch_schedule is not None:
        schedule = tuple(int(entry) for entry in batch_schedule)
    else:
        drops = [scale for scale, operator in operators.items() if not isinstance(operator, Keep)]
        schedule = default_batch_schedule(num_scales, drops)
    survivors_after = tuple(entry * int(n) for entry in schedule)
    rounds = Rounds()
    if name is Strategy.ADAPTIVE:
        rounds = Rounds.of(max_rounds=max_rounds, growth=growth, reject_below=reject_below, stop_at=stop_at)
    operators |= {scale: Keep() for scale, _ in rounds.reject_below if scale not in operators}
    scored = {scale for at, operator in operators.items() for scale in operator.scored_scales(at)}
    scored |= {scale for scale, _ in rounds.reject_below} | set((final or FinalChoice()).mean_of)
    looks = looks_of(num_scales, map_scales or (), look_ahead or {}, scored)
    plan = Plan(
        strategy=name.value,
        scale_schedule=tuple((int(height), int(width)) for height, width in scale_schedule),
        survivors_after=survivors_after,
        selections=tuple(
            Selection(scale_index=scale, operator=operators[scale], survivors=survivors_after[scale])
            for scale in sorted(operators)
        ),
        rounds=rounds,
        final=final or FinalChoice(),
        looks=looks,
    )
    if final not in (None, FinalChoice()):
        require_a_final_choice(plan)
    reads_features = Signal.FEATURES in plan.reads
    return replace(plan, joint_component=joint_component) if reads_features else plan


def _wanted(
    strategy: Strategy,
    num_scales: int,
    cluster_scales: Sequence[int] | None,
    resample_scales: Sequence[int] | None,
    selections: Sequence[SelectionSetting] | None,
    problems: list[str],
) -> list[WantedSelection]:
    """Return the selections: the caller's where given, else the preset's."""
    if strategy in (Strategy.RAW, Strategy.BEST_OF_N):
        return []
    if selections is not None and strategy.has_schedule:
        both = [
            f"{key}_scales"
            for key, value in (("cluster", cluster_scales), ("resample", resample_scales))
            if value
        ]
        if both:
            problems.append(
                f"selections: expected all selections of the plan there, got {' and '.join(both)} beside it; "
                "name those scales in selections, or remove it."
            )
        return [_read_setting(index, one, problems) for index, one in enumerate(selections)]
    preset = published_selections(num_scales) if num_scales >= FEWEST_SCALES else ()
    chosen = {"cluster": cluster_scales, "resample": resample_scales}
    if strategy is Strategy.RESAMPLING:
        chosen["cluster"] = ()
    if strategy is Strategy.ADAPTIVE:
        preset = ()
    wanted = []
    for name, given in chosen.items():
        operator = operator_class(name, setting=name)
        scales = [scale for scale, published in preset if published == name] if given is None else given
        wanted += [
            WantedSelection(where=f"{name}_scales[{position}]", scale=scale, operator=operator)
            for position, scale in enumerate(scales)
        ]
    return wanted


def _with_lambdas(
    wanted: Sequence[WantedSelection], lambdas: Sequence[float], problems: list[str]
) -> list[WantedSelection]:
    """Return the selections, each resampling that has no lambda with one of these, by ascending scale."""
    own = [one for one in wanted if one.operator is Resample and "lambda" not in one.options]
    if len(own) != len(lambdas):
        problems.append(
            f"lambda: expected one number, or one for each of the plan's {len(own)} resamplings, got "
            f"{list(lambdas)}; correct it."
        )
        return list(wanted)
    for place, value in enumerate(lambdas):
        problems += option_problems(Resample, {"lambda": value}, named=f"{{}}[{place}]".format)
    in_order = sorted(own, key=lambda one: one.scale if is_whole_number(one.scale) else -1)
    given = {one.where: value for one, value in zip(in_order, lambdas, strict=True)}
    return [
        replace(one, options={**one.options, "lambda": given[one.where]}) if one.where in given else one
        for one in wanted
    ]


def _read_setting(index: int, setting: SelectionSetting, problems: list[str]) -> WantedSelection:
    where = f"selections[{index}]"
    operator: type[Operator] | Operator | None = None
    if isinstance(setting.operator, str):
        with noting(problems):
            operator = operator_class(setting.operator, setting=f"{where}.operator")
            problems += option_problems(
                operator, setting.options, named=lambda option: f"{where}.options.{option}"
            )
    else:
        if isinstance(setting.operator, type):
            found = [f"expected an operator, got the class {setting.operator.__qualname__}; make one of it"]
        else:
            found = [] if is_built_in(setting.operator) else class_problems(type(setting.operator))
        problems += [f"{where}.operator: {problem}" for problem in found]
        operator = None if found else setting.operator
        if setting.options:
            problems.append(f"{where}.options: expected none for an operator that is made already.")
    return WantedSelection(where=where, scale=setting.scale, operator=operator, options=setting.options)


def _shared_options(name: str, shared: Mapping[str, Any]) -> dict[str, Any]:
    return {option: shared[key] for option, key in _SHARED.get(name, {}).items() if shared[key] is not None}


def _shared_problems(shared: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, settings in _SHARED.items():
        given = _shared_options(name, shared)
        problems += option_problems(operator_class(name, setting=name), given, named=settings.__getitem__)
    return problems


def _make_operators(
    wanted: Sequence[WantedSelection], shared: Mapping[str, Any], problems: list[str]
) -> dict[int, Operator]:
    """Return the operator at each scale."""
    operators: dict[int, Operator] = {}
    for one in wanted:
        operator = one.operator
        assert operator is not None
        with noting(problems):
            if isinstance(operator, type):
                given = {**_shared_options(operator.name, shared), **one.options}
                operator = make_operator(operator, given, setting=one.where)
            check_answers(operator, int(one.scale), setting=one.where)
            operators[int(one.scale)] = operator
    return operators


def _missing_selections(strategy: Strategy, num_scales: int, n: int, has_selections: bool) -> list[str]:
    if strategy is Strategy.RAW and is_whole_number(n) and n > 1:
        return [f"n: expected 1 (raw draws one image a prompt), got {n}; lower it or use strategy best-of-n."]
    if strategy not in (Strategy.RESAMPLING, Strategy.TTS_VAR) or has_selections:
        return []
    if num_scales < FEWEST_SCALES:
        problem = f"selects between the first and the last scale, and the model has only {num_scales}"
        return [f"strategy: {strategy.value} {problem}; use strategy best-of-n."]
    problem = "without any selection scale is best-of-n"
    return [f"strategy: {strategy.value} {problem}; use that strategy, or add a scale to resample_scales."]


def _unread_settings(
    strategy: Strategy,
    given: Mapping[str, Any],
    shared: Mapping[str, Any],
    wanted: Sequence[WantedSelection],
) -> list[str]:
    """Refuse settings that would change nothing: they are misunderstandings."""
    readable = set(_READS[strategy])
    for one in wanted:
        if isinstance(one.operator, type):
            settings = _SHARED.get(one.name, {})
            readable |= {key for option, key in settings.items() if option not in one.options}

    def written(value: Any) -> Any:
        return value.value if isinstance(value, enum.Enum) else value

    defaults = {"scheme": ResamplingScheme.MULTINOMIAL, "cluster_restarts": 10}
    told = {**given, **{key: value for key, value in shared.items() if value != defaults.get(key)}}
    return [
        f"{setting}: this {strategy.value} plan would not read it, got {written(value)}; remove it, or use a "
        "strategy or selection scales that do."
        for setting, value in told.items()
        if value is not None and value not in ((), []) and setting not in readable
    ]
