"""Algorithm 1 of TTS-VAR (arXiv 2507.18537), and around it the rounds of an adaptive search.

    _run_round:  run_segment -> scores, features -> select -> ancestor_index -> run_segment -> ...
    search:     _run_round, until a final image is good enough or all rounds were run -> rank_images

Comes in: a plan, and a callable that runs scales. Goes out: the ranking of the final images, with the
history and the lineage of each. Here is no model, no image and no worker: what trajectories are is known to
`run_segment` alone. The coordinator decides the same step by step, for many prompts and workers at once, and
is tested against this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ttsvar_ray.search.operators.protocol import Choice
from ttsvar_ray.search.plan import Plan, Segment
from ttsvar_ray.search.potentials import combine
from ttsvar_ray.search.rounds import Begin, Finish, RoundEnd, StopReason, rejection, what_follows
from ttsvar_ray.search.selection import rank_final, select
from ttsvar_ray.types import Float64Array, Int64Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """What running a segment shows of a whole population, in slot order.

    Attributes:
        scores: [population, scored scales of the segment, members of the reward].
        features: [population, feature_dim], or patches where the plan reduces them; None where the segment's
            selection reads none.
        log_likelihood: [population], nats of the bits of this segment's scales; None where nothing reads it.
    """

    scores: npt.NDArray[np.floating]
    features: npt.NDArray[np.floating] | None = None
    log_likelihood: npt.NDArray[np.floating] | None = None


ALONE = np.zeros(1, dtype=np.int64)
"""The ancestor of a trajectory that goes on alone: the only one there is."""

RunSegment = Callable[..., Seen]
"""`(segment, ancestor_index, round_index=0)` continues a population by one segment: slot i goes on from slot
`ancestor_index[i]` of the one before. In the first segment there is none before, and each slot begins. The
round names the random streams."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Past:
    """A population, and where its members come from.

    Attributes:
        reward_history: float64 [population, scored scales so far], along each lineage.
        lineage: int64 [population, segments so far]: each ancestor's slot in the population of its
            segment, the own slot last.
        log_likelihood: float64 [population], nats of all bits so far; zeros where nothing reads it.
        member_scores: float64 [population, members], what each member of the reward gave at the last scale
            that was scored.
    """

    reward_history: Float64Array
    lineage: Int64Array
    log_likelihood: Float64Array
    member_scores: Float64Array

    @classmethod
    def empty(cls, population: int) -> Past:
        """Return the past of a population that has not begun."""
        return cls(
            reward_history=np.empty((population, 0)),
            lineage=np.empty((population, 0), dtype=np.int64),
            log_likelihood=np.zeros(population),
            member_scores=np.empty((population, 0)),
        )

    @property
    def latest(self) -> Float64Array:
        """The population's rewards at the last scale that was scored, [population]."""
        return self.reward_history[:, -1]

    def of(self, slot: int) -> Past:
        """Return the past of one member, as of a population of its own."""
        return Past(
            reward_history=self.reward_history[[slot]],
            lineage=self.lineage[[slot]],
            log_likelihood=self.log_likelihood[[slot]],
            member_scores=self.member_scores[[slot]],
        )

    def grown(self, ancestor_index: Int64Array, seen: Seen, plan: Plan) -> Past:
        """Return the past of the next population: its ancestors', and what it has now seen itself.

        An ensemble's scores become one reward here, where the whole population is known.

        Raises:
            RewardError: a member of an ensemble gave no number.
        """
        scores, before = seen.scores, self.log_likelihood[ancestor_index]
        member = plan.final.member
        steer = scores if member is None else np.delete(scores, member, axis=2)
        rewards = [combine(steer[:, scale], plan.combination)[:, None] for scale in range(scores.shape[1])]
        slots = np.arange(len(ancestor_index))[:, None]
        return Past(
            reward_history=np.concatenate([self.reward_history[ancestor_index], *rewards], axis=1),
            lineage=np.concatenate([self.lineage[ancestor_index], slots], axis=1),
            log_likelihood=before if seen.log_likelihood is None else before + seen.log_likelihood,
            member_scores=np.asarray(scores[:, -1], dtype=np.float64)
            if scores.shape[1]
            else self.member_scores[ancestor_index],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Round:
    """How a round went.

    Attributes:
        segments: that it ran, in order.
        pasts: of the population of each of them.
        choices: of each selection; one fewer, because the last segment led to its end.
        end: where it ended: at the last scale, or where it was abandoned.
    """

    segments: tuple[Segment, ...]
    pasts: tuple[Past, ...]
    choices: tuple[Choice, ...]
    end: RoundEnd

    @property
    def past(self) -> Past:
        """Of the last population."""
        return self.pasts[-1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """How a search ended.

    Attributes:
        rounds: in the order in which they ran. One that was abandoned and then finished is there twice.
        ranking: (place in `rounds`, slot) of all final images, the best first.
        reason: why no further round followed.
    """

    rounds: tuple[Round, ...]
    ranking: tuple[tuple[int, int], ...]
    reason: StopReason

    @classmethod
    def of_one(
        cls, plan: Plan, *, ranking: Sequence[int], pasts: Sequence[Past], choices: Sequence[Choice]
    ) -> Found:
        """Return how a search of a single round ended; for loops of one's own.

        Args:
            plan: that was run, to its last scale.
            ranking: slots of the final images, the best first.
            pasts, choices: as of `Round`.

        Raises:
            ValueError: more or fewer choices than the plan has selections, or images that there are not.
        """
        if len(choices) != len(plan.selections):
            raise ValueError(
                f"loop: expected a choice for each of the plan's {len(plan.selections)} selections, "
                f"got {len(choices)}"
            )
        last = len(pasts[-1].latest) - 1
        slots = [int(slot) for slot in ranking]
        if not slots or len(set(slots)) < len(slots) or min(slots) < 0 or max(slots) > last:
            raise ValueError(f"loop: ranking: expected slots of final images once, 0 to {last}, got {slots}")
        end = RoundEnd.of(0, plan.num_scales - 1, pasts[-1].latest)
        one = Round(segments=plan.segments, pasts=tuple(pasts), choices=tuple(choices), end=end)
        return cls(rounds=(one,), ranking=tuple((0, slot) for slot in slots), reason=StopReason.ROUNDS)


def search(plan: Plan, run_segment: RunSegment, *, run_seed: int, prompt_key: str) -> Found:
    """Search images for one prompt: rounds of Algorithm 1 until there is a final image that is good enough.

    Args:
        plan: what to run; without rounds that is Algorithm 1, once.
        run_seed, prompt_key: name the random streams of the selections, with the round.

    Raises:
        FeatureError, RewardError, SelectionError: a population cannot be compared.
    """
    rounds: list[Round] = []
    while True:
        following = what_follows(plan, [one.end for one in rounds])
        if isinstance(following, Begin):
            index = following.round_index
            rounds.append(_run_round(plan, run_segment, index, run_seed=run_seed, prompt_key=prompt_key))
        elif isinstance(following, Finish):
            rounds.append(_finish_round(plan, run_segment, rounds[following.end.round_index]))
        else:
            return Found(rounds=tuple(rounds), ranking=_ranking(plan, rounds), reason=following.reason)


def _run_round(
    plan: Plan, run_segment: RunSegment, round_index: int, *, run_seed: int, prompt_key: str
) -> Round:
    """Run Algorithm 1: one population from the first scale to its final images, unless it is abandoned."""
    plan = plan.of_round(round_index)
    population = plan.population_before[0]
    past, ancestor_index = Past.empty(population), np.arange(population)
    pasts: list[Past] = []
    choices: list[Choice] = []
    for segment in plan.segments:
        seen = run_segment(segment, ancestor_index, round_index)
        past = past.grown(ancestor_index, seen, plan)
        pasts.append(past)
        if segment.selection is None or rejection(plan, segment.last_scale, past.reward_history) is not None:
            break
        choice = select(
            plan,
            segment.selection,
            features=seen.features,
            reward_history=past.reward_history,
            run_seed=run_seed,
            prompt_key=prompt_key,
            round_index=round_index,
            log_likelihood=past.log_likelihood,
        )
        choices.append(choice)
        ancestor_index = choice.ancestor_index
    end = RoundEnd.of(round_index, segment.last_scale, past.latest)
    ran = plan.segments[: len(pasts)]
    return Round(segments=ran, pasts=tuple(pasts), choices=tuple(choices), end=end)


def _finish_round(plan: Plan, run_segment: RunSegment, abandoned: Round) -> Round:
    """Run the best trajectory of an abandoned round to its end, alone: nothing is left to select."""
    round_index, plan = abandoned.end.round_index, plan.alone
    past, ancestor_index = abandoned.past, np.array([abandoned.end.slot])
    segments, pasts = plan.segments[len(abandoned.segments) :], []
    for segment in segments:
        seen = run_segment(segment, ancestor_index, round_index)
        past = past.grown(ancestor_index, seen, plan)
        pasts.append(past)
        ancestor_index = ALONE
    choices = tuple(Choice(ancestor_index=ALONE) for _ in segments[1:])
    end = RoundEnd.of(round_index, plan.num_scales - 1, past.latest, was_abandoned=True)
    return Round(segments=segments, pasts=tuple(pasts), choices=choices, end=end)


def _ranking(plan: Plan, rounds: Sequence[Round]) -> tuple[tuple[int, int], ...]:
    """Return (place in `rounds`, slot) of all final images, the best first; of equal ones the earlier."""
    whole = [(at, one.past) for at, one in enumerate(rounds) if one.end.scale_index == plan.num_scales - 1]
    images = [(place, slot) for place, past in whole for slot in range(len(past.lineage))]
    order = rank_final(
        plan,
        reward_history=np.concatenate([past.reward_history for _, past in whole]),
        member_scores=np.concatenate([past.member_scores for _, past in whole]),
        log_likelihood=np.concatenate([past.log_likelihood for _, past in whole]),
    )
    return tuple(images[at] for at in order.tolist())
