"""Several rewards as one: each judges every image of a population, and what they say is combined over it.

With s_im the score of image i by member m, and P the population of one prompt at one scale,

    SOFTMAX   r_i = mean over m of exp(s_im) / sum over j in P of exp(s_jm)
    Z_SCORE   r_i = mean over m of (s_im - mean_j s_jm) / std_j s_jm      (0 where all scores are equal)

Both compare the images of one prompt with each other, so a combined reward means nothing outside its
population, and it can be computed only where the whole population is known: never on one shard.
SOFTMAX keeps the units of its members: one whose scores spread over several units (ImageReward)
outweighs one that spreads over hundredths (HPS). Z_SCORE gives each member the same say.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ttsvar_ray.errors import RewardError
from ttsvar_ray.types import WORST_REWARD, Float64Array, RewardCombination


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
