"""One selection over a whole population, and the final ranking: pure functions of what was seen.

Algorithm 1 of TTS-VAR (arXiv 2507.18537), the two branches inside its loop over scales: cluster at
coarse scales, resample at fine ones; and, after the loop, the best image by reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ttsvar_ray.errors import RewardError
from ttsvar_ray.rng import POPULATION_SLOT, Purpose, integer_seed, stream
from ttsvar_ray.search.clustering import cluster_survivors, refuse_not_finite
from ttsvar_ray.search.plan import Plan, Selection
from ttsvar_ray.search.potentials import log_potentials
from ttsvar_ray.search.principal_component import first_component_of_all
from ttsvar_ray.search.resampling import effective_sample_size, resample
from ttsvar_ray.types import Float64Array, Int64Array, SelectionKind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SelectionOutcome:
    """What a selection decided, and the numbers behind it.

    Attributes:
        ancestor_index: int64 [survivors] slots in the population before, ascending; distinct after
            a clustering, possibly repeated after a resampling.
        labels: int64 [population] cluster of each trajectory, empty after a resampling.
        log_weights: float64 [population] lambda times the potential, empty after a clustering.
        ess: effective sample size of the weights, NaN after a clustering.
    """

    ancestor_index: Int64Array
    labels: Int64Array
    log_weights: Float64Array
    ess: float


class Select(Protocol):
    """The signature of `select`."""

    def __call__(
        self,
        plan: Plan,
        selection: Selection,
        *,
        features: npt.NDArray[np.floating] | None,
        reward_history: npt.NDArray[np.floating],
        run_seed: int,
        prompt_key: str,
    ) -> SelectionOutcome:
        """Choose the survivors of a whole population."""


def select(
    plan: Plan,
    selection: Selection,
    *,
    features: npt.NDArray[np.float32] | None,
    reward_history: npt.NDArray[np.floating],
    run_seed: int,
    prompt_key: str,
) -> SelectionOutcome:
    """Choose the survivors of a whole population.

    The same arguments give the same survivors on any worker: all chance comes from the streams named
    by (run_seed, prompt_key, scale, purpose).

    Args:
        plan: the plan that `selection` belongs to.
        selection: which of its selections.
        features: [population, feature_dim] in slot order, or [population, num_patches, width] where the plan
            has a `joint_component`; needed for a clustering, else not read.
        reward_history: [population, scored scales up to this one] in slot order, each row the
            rewards of that trajectory's lineage; needed for a resampling, else not read.
        run_seed: seed of the run.
        prompt_key: `Prompt.key`.

    Raises:
        FeatureError: a feature is NaN or infinite.
        RewardError: a reward is NaN or infinite.
    """
    scale_index = selection.scale_index
    population = plan.population_before[scale_index]
    if selection.kind is SelectionKind.CLUSTER:
        assert features is not None
        assert len(features) == population
        if plan.joint_component is not None:
            refuse_not_finite(features)
            features = first_component_of_all(features, plan.joint_component)
        seed = integer_seed(run_seed, prompt_key, scale_index, POPULATION_SLOT, Purpose.CLUSTER)
        ancestor_index, labels = cluster_survivors(features, selection.survivors, seed, plan.cluster_restarts)
        return SelectionOutcome(
            ancestor_index=ancestor_index,
            labels=labels,
            log_weights=np.empty(0),
            ess=float("nan"),
        )
    seen = sum(scale <= scale_index for scale in plan.scored_scales)
    assert reward_history.shape == (population, seen), f"{reward_history.shape} != {(population, seen)}"
    log_weights = log_potentials(reward_history, plan.potential, plan.lambda_)
    generator = stream(run_seed, prompt_key, scale_index, POPULATION_SLOT, Purpose.RESAMPLE)
    return SelectionOutcome(
        ancestor_index=resample(log_weights, selection.survivors, generator, plan.scheme),
        labels=np.empty(0, dtype=np.int64),
        log_weights=log_weights,
        ess=effective_sample_size(log_weights),
    )


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
