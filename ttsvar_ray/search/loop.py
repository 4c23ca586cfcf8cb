"""Algorithm 1 of TTS-VAR (arXiv 2507.18537): one prompt from the first scale to its best image.

    run_segment -> scores, features -> select -> ancestor_index -> run_segment -> ... -> rank_images

Comes in: a plan, and a callable that runs scales. Goes out: the ranking of the final images, with the
history and the lineage of each. Here is no model, no image and no worker: what trajectories are is known to
`run_segment` alone. The coordinator decides the same step by step, for many prompts and workers at once, and
is tested against this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttsvar_ray.search.ensemble import combine
from ttsvar_ray.search.operators.protocol import Choice
from ttsvar_ray.search.plan import Plan, Segment
from ttsvar_ray.search.selection import rank_images, select
from ttsvar_ray.types import Float64Array, Int64Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """What running a segment shows of a whole population, in slot order.

    Attributes:
        scores: [population, scored scales of the segment, members of the reward].
        features: [population, feature_dim], or patches where the plan reduces them; None where the segment's
            selection reads none.
    """

    scores: npt.NDArray[np.floating]
    features: npt.NDArray[np.floating] | None = None


RunSegment = Callable[[Segment, Int64Array], Seen]
"""Continues a population by one segment: slot i goes on from slot `ancestor_index[i]` of the one before.
In the first segment there is none before, and each slot begins."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Past:
    """A population, and where its members come from.

    Attributes:
        reward_history: float64 [population, scored scales so far], along each lineage.
        lineage: int64 [population, segments so far]: each ancestor's slot in the population of its
            segment, the own slot last.
    """

    reward_history: Float64Array
    lineage: Int64Array

    @classmethod
    def empty(cls, population: int) -> Past:
        """Return the past of a population that has not begun."""
        return cls(
            reward_history=np.empty((population, 0)), lineage=np.empty((population, 0), dtype=np.int64)
        )

    def grown(self, ancestor_index: Int64Array, scores: npt.NDArray[np.floating], plan: Plan) -> Past:
        """Return the past of the next population: its ancestors', and what it has now seen itself.

        Args:
            scores: as in `Seen`; an ensemble's become one reward here, where the whole population is known.

        Raises:
            RewardError: a member of an ensemble gave no number.
        """
        rewards = [combine(scores[:, scale], plan.combination)[:, None] for scale in range(scores.shape[1])]
        slots = np.arange(len(ancestor_index))[:, None]
        return Past(
            reward_history=np.concatenate([self.reward_history[ancestor_index], *rewards], axis=1),
            lineage=np.concatenate([self.lineage[ancestor_index], slots], axis=1),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """How a search ended.

    Attributes:
        ranking: int64 [finished] slots of the final images, the best first.
        pasts: of the population of each segment, in order.
        choices: of each selection, in order.
    """

    ranking: Int64Array
    pasts: tuple[Past, ...]
    choices: tuple[Choice, ...]

    @property
    def past(self) -> Past:
        """Of the final population."""
        return self.pasts[-1]


def search(plan: Plan, run_segment: RunSegment, *, run_seed: int, prompt_key: str) -> Found:
    """Search images for one prompt.

    Args:
        plan: what to run.
        run_segment: runs the scales of a segment for a population.
        run_seed, prompt_key: name the random streams of the selections.

    Raises:
        FeatureError, RewardError, SelectionError: the population cannot be compared.
    """
    population = plan.population_before[0]
    past, ancestor_index = Past.empty(population), np.arange(population)
    pasts, choices = [], []
    for segment in plan.segments:
        seen = run_segment(segment, ancestor_index)
        past = past.grown(ancestor_index, seen.scores, plan)
        pasts.append(past)
        if segment.selection is None:
            break
        choice = select(
            plan,
            segment.selection,
            features=seen.features,
            reward_history=past.reward_history,
            run_seed=run_seed,
            prompt_key=prompt_key,
        )
        choices.append(choice)
        ancestor_index = choice.ancestor_index
    ranking = rank_images(past.reward_history[:, -1])
    return Found(ranking=ranking, pasts=tuple(pasts), choices=tuple(choices))
