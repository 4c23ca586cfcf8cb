"""What makes a batch schedule and its selections runnable, said in sentences a person can act on."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ttsvar_ray.errors import ConfigurationError, brief
from ttsvar_ray.search.operators.keep import Keep
from ttsvar_ray.search.operators.protocol import Operator, Signal
from ttsvar_ray.search.plan import Look, Plan
from ttsvar_ray.types import ScaleSchedule

_NOUNS = {"cluster": "clustering", "resample": "resampling"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedSelection:
    """A selection on its way from settings to the plan.

    Attributes:
        where: the setting, `cluster_scales[0]`.
        scale: as written, whatever it is.
        operator: the class that is named, or one that is made; None where that is wrong.
    """

    where: str
    scale: int
    operator: type[Operator] | Operator | None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """The setting without its index."""
        return self.where.partition("[")[0]

    @property
    def name(self) -> str:
        """Of the operator."""
        return "" if self.operator is None else self.operator.name

    @property
    def noun(self) -> str:
        """What stands there, for messages."""
        return _NOUNS.get(self.name, self.name)

    @property
    def must_drop(self) -> bool:
        """Whether it makes sense only where a trajectory is dropped."""
        return self.operator is not None and not self.operator.repeats

    @property
    def must_keep(self) -> bool:
        """Whether it can keep nothing less than the whole population."""
        return self.name == Keep.name

    @property
    def remedy(self) -> str:
        """How to take it away again."""
        listed = self.setting != "selections"
        return f"remove {f'{self.scale} from {self.setting}' if listed else self.where}"


def is_whole_number(value: object) -> bool:
    """Return whether `value` is an integer; true and false are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def selection_scale_problems(num_scales: int, selections: Sequence[WantedSelection]) -> list[str]:
    """Return what is wrong with the selection scales: range, repetition, two selections at one scale."""
    problems: list[str] = []
    seen: dict[int, str] = {}
    for selection in selections:
        scale, where, setting = selection.scale, selection.where, selection.setting
        lowest = 1 if selection.must_drop else 0
        if not is_whole_number(scale):
            problems.append(f"{where}: expected a scale index, got {scale!r}; use a whole number.")
            continue
        if scale == num_scales - 1:
            problems.append(
                f"{where}: scale {scale} is the last scale, where the best image is chosen by reward; "
                f"a selection there would choose twice: use a scale below {scale}."
            )
        elif not 0 <= scale < num_scales:
            problems.append(
                f"{where}: expected a scale from {lowest} to {num_scales - 2} "
                f"(the model has {num_scales} scales), got {scale}; correct or remove it."
            )
        elif scale < lowest:
            problems.append(
                f"{where}: {selection.noun} at scale 0 cannot drop anything, because batch_schedule[0] is "
                f"the population both before and after it; use scale 1 or later."
            )
        elif seen.get(scale) == setting:
            problems.append(f"{where}: scale {scale} is listed twice; remove one.")
        elif scale in seen:
            problems.append(
                f"{seen[scale]} and {setting}: both name scale {scale}, and a scale has at most one "
                f"selection; remove it from one of them."
            )
        seen.setdefault(scale, setting)
    return problems


def batch_schedule_problems(
    num_scales: int, batch_schedule: Sequence[int], selections: Sequence[WantedSelection]
) -> list[str]:
    """Return what is wrong with a schedule of survivors.

    Entry k is the population after scale k's selection, so it may be lower than entry k - 1 only
    where scale k has a selection, and never higher. Entry 0 is also the population before scale 0.
    """
    if len(batch_schedule) != num_scales:
        missing = num_scales - len(batch_schedule)
        remedy = f"add {missing}" if missing > 0 else f"remove {-missing}"
        found = f"expected {num_scales} entries (one a scale), got {len(batch_schedule)}"
        return [f"batch_schedule: {found}; {remedy}."]
    unusable = [
        f"batch_schedule[{scale}]: expected a whole number of at least 1, got {entry!r}; correct it."
        for scale, entry in enumerate(batch_schedule)
        if not is_whole_number(entry) or entry < 1
    ]
    if unusable:
        return unusable
    problems: list[str] = []
    at = {selection.scale: selection for selection in selections}
    for scale in range(1, num_scales):
        before, after = batch_schedule[scale - 1], batch_schedule[scale]
        if after > before:
            problems.append(
                f"batch_schedule[{scale}]: expected at most {before} (population before scale {scale}), "
                f"got {after}; a population never grows: lower it, or raise the entries before it."
            )
        elif after < before and scale not in at:
            problems.append(
                f"batch_schedule[{scale}]: expected {before} (no selection at scale {scale} could drop any), "
                f"got {after}; raise it to {before} or add a selection at scale {scale}."
            )
        elif after < before and at[scale].must_keep:
            problems.append(
                f"batch_schedule[{scale}]: expected {before} (keep at scale {scale} drops nothing), got "
                f"{after}; raise it to {before}, or have another operator there."
            )
        elif after == before and scale in at and at[scale].must_drop:
            problems.append(
                f"batch_schedule[{scale}]: expected fewer than {before} (population before the "
                f"{at[scale].noun} at scale {scale}), got {after}; {at[scale].noun} into as many would drop "
                f"nothing: lower it or {at[scale].remedy}."
            )
    return problems


def rounds_problems(
    num_scales: int,
    *,
    max_rounds: int | None,
    growth: Sequence[int] | None,
    reject_below: Mapping[int, float] | None,
    stop_at: float | None,
) -> list[str]:
    """Return what is wrong with the rounds of an adaptive search; arguments as `strategy.compile_plan`.

    Rewards mean different things in every model and reward, so that no threshold is a good guess.
    """
    problems: list[str] = []
    if stop_at is None:
        problems.append(
            "stop_at: not given; an adaptive search stops at a final image of at least this reward, and only "
            "a calibration knows which is good enough: run `ttsvar-ray calibrate` with this model and reward "
            "and use the plan file that it writes, or set a reward of your own."
        )
    elif not _is_number(stop_at):
        problems.append(f"stop_at: expected a finite reward, got {stop_at!r}; correct it.")
    if max_rounds is not None and (not is_whole_number(max_rounds) or max_rounds < 1):
        problems.append(f"max_rounds: expected a whole number of at least 1, got {max_rounds!r}; correct it.")
    factors = [1] if growth is None else list(growth)
    if not factors or not all(is_whole_number(one) and one >= 1 for one in factors) or factors[0] != 1:
        problems.append(
            f"growth: expected whole numbers of at least 1, and 1 for the first round, got {factors}; "
            "correct it, or change n, which multiplies the population of all rounds."
        )
    for scale, least in (reject_below or {}).items():
        if not is_whole_number(scale) or not 0 <= scale < num_scales - 1:
            problems.append(
                f"reject_below: expected scales from 0 to {num_scales - 2} (the last scale has stop_at), got "
                f"{scale!r}; correct or remove it."
            )
        if not _is_number(least):
            problems.append(f"reject_below[{scale}]: expected a finite reward, got {least!r}; correct it.")
    return problems


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def scale_schedule_problems(scale_schedule: ScaleSchedule) -> list[str]:
    """Return what is wrong with a model's scales."""
    if not scale_schedule:
        return ["scale_schedule: expected at least one scale, got none; check the model's configuration."]
    return [
        f"scale_schedule[{scale}]: expected a (height, width) of at least 1 x 1 tokens, got {tuple(grid)}; "
        f"check the model's configuration."
        for scale, grid in enumerate(scale_schedule)
        if len(grid) != 2 or not all(is_whole_number(side) and side >= 1 for side in grid)
    ]


def require_a_final_choice(plan: Plan) -> None:
    """Refuse a setting of the final choice where there is none.

    Raises:
        ConfigurationError: the plan ends with one image.
    """
    if plan.survivors_after[-1] == plan.rounds.most == 1:
        raise ConfigurationError(
            "final_mean_of, final_reward and final_ties: this plan ends with one image a prompt, so that "
            "nothing is left to choose; remove them, or keep more trajectories to the end."
        )


def looks_of(
    num_scales: int, map_scales: Sequence[int], look_ahead: Mapping[int, int], scored: set[int]
) -> tuple[Look, ...]:
    """Return how scales are judged without a decode of what is there."""
    named = {f"map_scales: {scale}": Look(scale_index=scale) for scale in map_scales}
    named |= {f"look_ahead: {at}": Look(scale_index=at, ahead_to=to) for at, to in look_ahead.items()}
    readable = sorted(scored - {num_scales - 1})
    problems = [
        f"{where}: expected a scale before the last whose rewards this plan reads "
        f"({', '.join(map(str, readable)) or 'it reads none'}), got {look.scale_index}; remove it, or add a "
        "selection that does."
        for where, look in named.items()
        if look.scale_index not in readable
    ]
    problems += [
        f"{where}: expected a later scale, at most {num_scales - 1}, got {look.ahead_to}; correct it."
        for where, look in named.items()
        if look.ahead_to is not None and not look.scale_index < look.ahead_to < num_scales
    ]
    scales = [look.scale_index for look in named.values()]
    twice = sorted({scale for scale in scales if scales.count(scale) > 1})
    problems += [f"look_ahead: {scale}: is in map_scales, too; keep one of them." for scale in twice]
    if problems:
        raise ConfigurationError(problems)
    return tuple(sorted(named.values(), key=lambda look: look.scale_index))


def check_answers(operator: Operator, scale: int, *, setting: str) -> None:
    """Refuse an operator whose `scored_scales` or `describe` cannot be used.

    Raises:
        ConfigurationError: says which, and what was expected.
    """
    where = f"{setting}: operator {operator.name}"
    try:
        described, scored = operator.describe(), operator.scored_scales(scale)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"{where}: fails before anything is selected ({brief(error)})") from error
    if not isinstance(described, str):
        raise ConfigurationError(f"{where}: describe: expected a text, got {described!r}")
    needed = Signal.REWARDS in operator.reads
    is_usable = isinstance(scored, Sequence) and bool(scored) == needed
    if not is_usable or not all(is_whole_number(one) and 0 <= one <= scale for one in scored):
        expected = f"scales from 0 to {scale}" if needed else "none, because it reads no rewards"
        raise ConfigurationError(f"{where}: scored_scales: expected {expected}, got {scored!r}")
