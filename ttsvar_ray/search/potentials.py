"""Potentials: how the rewards of a trajectory's intermediate images become its resampling weight.

With r_i the reward of the image decoded after scale i, the weight at a resampling scale t is
G_t = exp(lambda * J_t), where (TTS-VAR, arXiv 2507.18537, the resampling-based potential selection
of section 3; the same family as in Feynman-Kac steering, arXiv 2501.06848)

    VALUE   J_t = r_t
    DIFF    J_t = r_t - r_(t-1)       (J_0 = r_0: before the first scale there is nothing to subtract)
    MAX     J_t = max(r_0, ..., r_t)
    SUM     J_t = r_0 + ... + r_t

A reward has units of its own, and lambda must fit them. Normalised over its population a potential has none:

    Z_SCORE J is taken less its mean, over its standard deviation (0 where all are equal)
    RANK    J becomes its rank, 0 for the lowest to 1 for the highest, the mean rank where some are equal

Differs: the published code offers all four on its command line but refuses all except VALUE, and
never records the history the others need. Here the plan asks for exactly the scores a potential
reads, and the history follows its trajectory through every selection.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ttsvar_ray.errors import RewardError
from ttsvar_ray.search.ensemble import z_scores
from ttsvar_ray.types import Float64Array, Normalisation, PotentialKind


def scales_read(kind: PotentialKind, scale_index: int) -> tuple[int, ...]:
    """Return the scales whose rewards a potential reads for a selection after one scale, ascending.

    VALUE reads that scale; DIFF also the one before; MAX and SUM every scale up to it.
    """
    if kind is PotentialKind.VALUE:
        return (scale_index,)
    first = max(scale_index - 1, 0) if kind is PotentialKind.DIFF else 0
    return tuple(range(first, scale_index + 1))


def log_potentials(
    reward_history: npt.NDArray[np.floating],
    kind: PotentialKind,
    lambda_: float,
    normalise: Normalisation = Normalisation.NONE,
) -> Float64Array:
    """Return lambda times the potential of each trajectory, in log space.

    Args:
        reward_history: [population, scales], finite, one column for each of `scales_read`. A single column
            under DIFF is the score of scale 0, taken as it is.
        kind: which potential.
        lambda_: sharpness, >= 0; 0 makes all trajectories equally likely.
        normalise: what the potential becomes within the population first.

    Returns:
        float64 [population] log weights, not normalised, all finite.

    Raises:
        RewardError: lambda times a potential is NaN or infinite.

    Source: TTS-VAR section 3, potential scores; lambda = 10 in its experiments.
    Differs: the published code forms exp(lambda * J) without a shift, so that a large reward
        overflows, and one NaN makes every other trajectory equally likely.
    """
    history = np.asarray(reward_history, dtype=np.float64)
    assert history.ndim == 2, f"expected [population, scales], got {history.shape}"
    assert history.shape[1] >= 1, "expected the score of the selection scale, got no scores"
    if kind is PotentialKind.VALUE or history.shape[1] == 1:
        potential = history[:, -1]
    elif kind is PotentialKind.DIFF:
        potential = history[:, -1] - history[:, -2]
    elif kind is PotentialKind.MAX:
        potential = history.max(axis=1)
    else:
        potential = history.sum(axis=1)
    potential = _normalised(potential, normalise)
    with np.errstate(over="ignore", invalid="ignore"):
        log_weights = lambda_ * potential
    if not np.isfinite(log_weights).all():
        raise RewardError(
            f"lambda * potential: expected finite log weights, got up to {potential.max():.3g} times lambda "
            f"{lambda_:g}; lower lambda or rescale the reward."
        )
    return np.asarray(log_weights, dtype=np.float64)


def _normalised(potential: Float64Array, kind: Normalisation) -> Float64Array:
    """Return potentials [population] in units of their population; as they are for NONE."""
    if kind is Normalisation.NONE:
        return potential
    if kind is Normalisation.Z_SCORE:
        return z_scores(potential)
    below = (potential[:, None] > potential).sum(axis=1)
    equal = (potential[:, None] == potential).sum(axis=1)
    ranks: Float64Array = (below + (equal - 1) / 2) / max(len(potential) - 1, 1)
    return ranks
