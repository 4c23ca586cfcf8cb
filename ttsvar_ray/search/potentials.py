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

An ensemble's members are combined first, over the population P of one prompt at one scale: with s_im the
score of image i by member m,

    SOFTMAX   r_i = mean over m of exp(s_im) / sum over j in P of exp(s_jm)
    Z_SCORE   r_i = mean over m of (s_im - mean_j s_jm) / std_j s_jm      (0 where all scores are equal)

Both compare the images of one prompt with each other, so a combined reward means nothing outside its
population, and it can be computed only where the whole population is known: never on one shard. SOFTMAX keeps
the units of its members: one whose scores spread over several units (ImageReward) outweighs one that spreads
over hundredths (HPS). Z_SCORE gives each member the same say.

Differs: the published code offers all four on its command line but refuses all except VALUE, and
never records the history the others need. Here the plan asks for exactly the scores a potential
reads, and the history follows its trajectory through every selection.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ttsvar_ray.errors import RewardError
from ttsvar_ray.types import WORST_REWARD, Float64Array, Normalisation, PotentialKind, RewardCombination


def combine(scores: npt.NDArray[np.floating], combination: RewardCombination | None) -> Float64Array:
    """Return one reward per image of a whole population.

    Args:
        scores: [population, members], in slot order.
        combination: how; None for a reward on its own, whose scores are returned as they are, whatever
            they are.

    Returns:
        float64 [population]. A score of `WORST_REWARD` stands for "not judged": its share in a softmax
        is zero, and its z-score is one deviation below the lowest of those that were judged, whose mean
        and deviation it leaves alone.

    Raises:
        RewardError: a score to be combined is NaN or infinite: it would spoil the whole population's.
    """
    values = np.asarray(scores, dtype=np.float64)
    assert values.ndim == 2, f"expected [population, members], got {values.shape}"
    if combination is None:
        assert values.shape[1] == 1, f"{values.shape[1]} members need a combination"
        return values[:, 0]
    if not np.isfinite(values).all():
        slots, members = np.nonzero(~np.isfinite(values))
        raise RewardError(
            f"ensemble: expected finite scores, got NaN or infinity from member {members[0]} in slot "
            f"{slots[0]}; fix that reward, or set reward.nonfinite to 'worst'"
        )
    each = _shares if combination is RewardCombination.SOFTMAX else z_scores
    combined: Float64Array = np.mean([each(column) for column in values.T], axis=0)
    return combined


def _shares(scores: Float64Array) -> Float64Array:
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum())


def z_scores(scores: Float64Array) -> Float64Array:
    """Return scores [population] less their mean, over their standard deviation; zeros where all are equal.

    A score of `WORST_REWARD` is left out, and becomes one less than the lowest of the others.
    """
    judged = scores > WORST_REWARD
    result = np.zeros_like(scores)
    if not judged.any():
        return result
    centred = scores[judged] - scores[judged].mean()
    deviation = float(np.sqrt(np.mean(centred**2)))
    # Equal scores differ from their own mean by rounding only; scaled up, that would rank them.
    if deviation > 1e-12 * max(1.0, float(np.abs(scores[judged]).max())):
        result[judged] = centred / deviation
    result[~judged] = result[judged].min() - 1.0
    return result


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
