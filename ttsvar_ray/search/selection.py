"""One selection over a whole population, and the final ranking: pure functions of what was seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ttsvar_ray.errors import RewardError, SelectionError, TtsVarError, brief
from ttsvar_ray.results import SelectionRecord
from ttsvar_ray.rng import POPULATION_SLOT, stream
from ttsvar_ray.search.operators.protocol import Choice, Evidence, Signal
from ttsvar_ray.search.plan import Plan, Selection
from ttsvar_ray.search.principal_component import first_component_of_all
from ttsvar_ray.types import Float64Array, Int64Array

Select = Callable[..., Choice]
"""What has the signature of `select`."""


def select(
    plan: Plan,
    selection: Selection,
    *,
    features: npt.NDArray[np.floating] | None,
    reward_history: npt.NDArray[np.floating],
    run_seed: int,
    prompt_key: str,
    round_index: int = 0,
    log_likelihood: npt.NDArray[np.floating] | None = None,
) -> Choice:
    """Choose the survivors of a whole population.

    The same arguments give the same survivors on any worker: all chance comes from the stream named
    by (run_seed, prompt_key, scale, operator, round).

    Args:
        features: [population, feature_dim] in slot order, or [population, num_patches, width] where the plan
            has a `joint_component`; needed where the operator reads features, else not looked at.
        reward_history: [population, scored scales up to this one] in slot order, each row the
            rewards of that trajectory's lineage; not looked at where the operator reads no rewards.
        round_index: of an adaptive search; `plan` is then that of the round.
        log_likelihood: [population] in slot order, nats of all bits of the lineage; needed where the operator
            reads it.

    Returns:
        int64 `ancestor_index` in ascending order; `numbers` of float64 arrays.

    Raises:
        FeatureError, RewardError: a feature or a reward is NaN or infinite.
        SelectionError: the operator fails, or chooses what cannot be.
    """
    operator, scale_index = selection.operator, selection.scale_index
    population = plan.population_before[scale_index]
    evidence = Evidence(
        population=population,
        features=_features_seen(plan, features, population) if Signal.FEATURES in operator.reads else None,
        reward_history=_rewards_seen(plan, selection, reward_history)
        if Signal.REWARDS in operator.reads
        else None,
        log_likelihood=_likelihood_seen(log_likelihood, population)
        if Signal.LIKELIHOOD in operator.reads
        else None,
    )
    rng = stream(run_seed, prompt_key, scale_index, POPULATION_SLOT, operator.name, round_index)
    try:
        return _checked(operator.select(evidence, selection.survivors, rng), selection, population)
    except TtsVarError:
        raise
    except (Exception, SystemExit) as error:
        raise _fault(selection, f"failed ({brief(error)})") from error


def _features_seen(
    plan: Plan, features: npt.NDArray[np.floating] | None, population: int
) -> npt.NDArray[np.floating]:
    assert features is not None
    assert len(features) == population
    if plan.joint_component is None:
        return features
    Evidence(population=population, features=features)  # a patch that is no number would spoil all images
    return first_component_of_all(features, plan.joint_component)


def _likelihood_seen(log_likelihood: npt.NDArray[np.floating] | None, population: int) -> Float64Array:
    assert log_likelihood is not None
    assert log_likelihood.shape == (population,)
    return np.asarray(log_likelihood, dtype=np.float64)


def _rewards_seen(plan: Plan, selection: Selection, reward_history: npt.NDArray[np.floating]) -> Float64Array:
    """Return the columns that the operator asked for, of those that any operator did."""
    scored = [scale for scale in plan.scored_scales if scale <= selection.scale_index]
    expected = (plan.population_before[selection.scale_index], len(scored))
    assert reward_history.shape == expected, f"{reward_history.shape} != {expected}"
    wanted = selection.operator.scored_scales(selection.scale_index)
    return np.asarray(reward_history, dtype=np.float64)[:, [scored.index(scale) for scale in wanted]]


def _checked(choice: Choice, selection: Selection, population: int) -> Choice:
    """Return a choice with sorted ancestors and numbers as arrays, if it is one.

    Raises:
        SelectionError: it is none.
    """
    if not isinstance(choice, Choice):
        raise _fault(selection, f"expected a Choice, got {type(choice).__name__}")
    ancestors = np.asarray(choice.ancestor_index)
    if ancestors.shape != (selection.survivors,) or ancestors.dtype.kind not in "iu":
        raise _fault(
            selection,
            f"ancestor_index: expected {selection.survivors} whole numbers, got {ancestors.dtype} of shape "
            f"{ancestors.shape}",
        )
    if ancestors.min() < 0 or ancestors.max() >= population:
        raise _fault(
            selection,
            f"ancestor_index: expected slots from 0 to {population - 1}, got {ancestors.tolist()}",
        )
    if not selection.operator.repeats and len(set(ancestors.tolist())) < len(ancestors):
        raise _fault(
            selection,
            f"ancestor_index: expected distinct slots, because `repeats` is False, got {ancestors.tolist()}",
        )
    return Choice(
        ancestor_index=np.sort(ancestors).astype(np.int64),
        numbers={name: _number(name, value, selection, population) for name, value in choice.numbers.items()},
    )


def _number(name: str, value: npt.ArrayLike, selection: Selection, population: int) -> Float64Array:
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise _fault(selection, f"numbers[{name!r}]: expected numbers, got {value!r}") from None
    if not isinstance(name, str):
        raise _fault(selection, f"numbers: expected text as names, got {name!r}")
    if numbers.shape not in ((), (population,)):
        raise _fault(
            selection,
            f"numbers[{name!r}]: expected one number or one for each of {population} trajectories, got shape "
            f"{numbers.shape}",
        )
    if not np.isfinite(numbers).all():
        raise _fault(selection, f"numbers[{name!r}]: expected finite numbers, got NaN or infinity")
    return numbers


def _fault(selection: Selection, problem: str) -> SelectionError:
    return SelectionError(f"operator {selection.operator.name} at scale {selection.scale_index}: {problem}")


def rank_images(rewards: npt.ArrayLike) -> Int64Array:
    """Return int64 [n] slots from the best final reward to the worst; equal rewards by slot.

    Args:
        rewards: [n] rewards of the final images, in slot order.

    Raises:
        RewardError: a reward is NaN or infinite.
    """
    values = np.asarray(rewards, dtype=np.float64)
    assert values.ndim == 1, f"expected [n], got {values.shape}"
    if not np.isfinite(values).all():
        raise RewardError(
            f"final rewards: expected finite numbers, got NaN or infinity in slots "
            f"{np.flatnonzero(~np.isfinite(values)).tolist()}; fix the reward model, or set reward.nonfinite "
            f"to 'worst'."
        )
    return np.argsort(-values, kind="stable").astype(np.int64)


def rank_final(
    plan: Plan,
    *,
    reward_history: npt.NDArray[np.floating],
    member_scores: npt.NDArray[np.floating],
    log_likelihood: npt.NDArray[np.floating],
) -> Int64Array:
    """Return int64 [n] places of final images from the best to the worst, as the plan chooses.

    Args:
        reward_history: [n, scored scales of the plan], of each image's lineage.
        member_scores: [n, members], what each member of the reward gave the final image.
        log_likelihood: [n], nats; not looked at where the plan does not choose by it.

    Raises:
        RewardError: a number that is chosen by is NaN or infinite.
    """
    history, final = np.asarray(reward_history, dtype=np.float64), plan.final
    if final.mean_of:
        values = history[:, [plan.scored_scales.index(scale) for scale in final.mean_of]].mean(axis=1)
    elif final.member is not None:
        values = np.asarray(member_scores, dtype=np.float64)[:, final.member]
    else:
        values = history[:, -1]
    if not final.ties_by_likelihood:
        return rank_images(values)
    likeliest = np.argsort(-np.asarray(log_likelihood, dtype=np.float64), kind="stable")
    return likeliest[rank_images(values[likeliest])]


def selection_record(
    prompt_key: str, selection: Selection, reward_history: Float64Array, *, choice: Choice, round_index: int
) -> SelectionRecord:
    """Return the row of the trace for one selection; its placement is still open.

    Args:
        reward_history: float64 [population, scored scales so far], of what was selected from; the latest
            rewards are kept where the operator reads any.
    """
    return SelectionRecord(
        prompt_key=prompt_key,
        scale_index=selection.scale_index,
        kind=selection.operator.name,
        ancestor_index=tuple(np.asarray(choice.ancestor_index).tolist()),
        rewards=tuple(reward_history[:, -1].tolist()) if Signal.REWARDS in selection.operator.reads else (),
        numbers={
            name: tuple(np.asarray(value, dtype=np.float64).reshape(-1).tolist())
            for name, value in choice.numbers.items()
        },
        round_index=round_index,
    )


def abandoned_record(
    prompt_key: str, selection: Selection, rewards: Float64Array, *, missed: float, round_index: int
) -> SelectionRecord:
    """Return the row for a selection that was not made: its round's best reward did not reach `missed`."""
    return SelectionRecord(
        prompt_key=prompt_key,
        scale_index=selection.scale_index,
        kind=selection.operator.name,
        ancestor_index=(),
        rewards=tuple(rewards.tolist()),
        reason=f"abandoned: the best reward, {rewards.max():.4g}, is below {missed:.4g}",
        round_index=round_index,
    )
