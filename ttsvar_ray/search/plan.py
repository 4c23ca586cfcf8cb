"""The plan: how many trajectories run each scale, which operator selects where, and what is scored.

Comes in: settings, compiled by `search.strategy.compile_plan`. Goes out: `Plan.segments`, the runs of
scales between selections; `search.loop`, the engine, the coordinator and the simulator all walk through
them. A plan is a value: it knows nothing of a prompt, a model's weights or a worker, and nothing in it is
left unread. It never changes after it was made.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ttsvar_ray.search.operators.protocol import Operator, Signal
from ttsvar_ray.search.principal_component import ComponentSign
from ttsvar_ray.types import RewardCombination, ScaleSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """An operator population -> survivors after one scale."""

    scale_index: int
    operator: Operator
    survivors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How the rewards of one scale are had, where not from a decode of each trajectory as it stands.

    Attributes:
        scale_index: whose rewards.
        ahead_to: the scale that trajectories are cheaply run on to and decoded at, to be put back after it;
            None: they are read off the feature map, and nothing is decoded.
    """

    scale_index: int
    ahead_to: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of scales that ends at a selection scale, or at the last scale (`selection` None)."""

    index: int
    first_scale: int
    last_scale: int
    population: int
    selection: Selection | None
    scored_scales: tuple[int, ...]
    looks: tuple[Look, ...] = ()

    def look(self, scale_index: int) -> Look | None:
        """Return how a scored scale is looked at; None: by a decode of it."""
        return next((look for look in self.looks if look.scale_index == scale_index), None)

    @property
    def is_last(self) -> bool:
        """Whether the final images come out of this segment."""
        return self.selection is None

    @property
    def reads(self) -> frozenset[Signal]:
        """What its selection reads; of the last segment, nothing."""
        return frozenset() if self.selection is None else self.selection.operator.reads


MOST_ROUNDS = 8
"""Of an adaptive search that does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How often a prompt may begin anew, and when it need not go on.

    Attributes:
        growth: one entry a round: how many times the plan's population it has; 1 first.
        reject_below: (scale, reward), ascending: a round is abandoned at this scale where its best reward
            there is below this one.
        stop_at: no further round follows a final image of at least this reward; None: nothing is enough.
    """

    growth: tuple[int, ...] = (1,)
    reject_below: tuple[tuple[int, float], ...] = ()
    stop_at: float | None = None

    def __post_init__(self) -> None:
        assert self.growth[0] == 1
        assert min(self.growth) >= 1
        scales = [scale for scale, _ in self.reject_below]
        assert scales == sorted(set(scales))

    @classmethod
    def of(
        cls,
        *,
        max_rounds: int | None,
        growth: Sequence[int] | None,
        reject_below: Mapping[int, float] | None,
        stop_at: float | None,
    ) -> Rounds:
        """Return the rounds that the settings of a strategy mean (`search.strategy.compile_plan`)."""
        most, factors = max_rounds or MOST_ROUNDS, tuple(growth or (1,))
        return cls(
            growth=(factors + factors[-1:] * most)[:most],
            reject_below=tuple(
                (int(scale), float(least)) for scale, least in sorted((reject_below or {}).items())
            ),
            stop_at=stop_at,
        )

    @property
    def most(self) -> int:
        """The most rounds of a prompt."""
        return len(self.growth)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalChoice:
    """How the final images of a prompt are ranked.

    Attributes:
        mean_of: scales: by the mean reward of the lineage there; none: by the reward of the final image.
        member: of an ensemble: by what this member gives the final image. It is no part of the reward that
            steers; the others are.
        ties_by_likelihood: whether the likelier of equal ones is first, not the lower slot.
    """

    mean_of: tuple[int, ...] = ()
    member: int | None = None
    ties_by_likelihood: bool = False

    def __post_init__(self) -> None:
        assert not (self.mean_of and self.member is not None)
        assert list(self.mean_of) == sorted(set(self.mean_of))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Algorithm 1 for one model and one strategy; everything in it is used, nothing else is.

    Made by `ttsvar_ray.search.strategy.compile_plan`, which explains what is wrong with settings;
    the assertions here only guard against plans built around it.

    Attributes:
        survivors_after: trajectories that remain after scale k's selection.
        selections: in ascending scale order, at most one a scale, never at the last scale.
        reward_members, combination: how many rewards score each image, and how the scores of those that steer
            become one; a single one needs no combination.
        joint_component: None where features arrive as one vector per image; else they are patches, and
            operators see them along the first principal direction of all patches of the population, of
            this sign.
        rounds: of an adaptive search. Populations and selections are those of the first round; all rounds
            have the same segments, so that what a segment costs a trajectory depends on no round.
        looks: scored scales but the last that are not judged by a decode of what is there, ascending.
        scored_scales: scales after which every live trajectory is scored: those whose rewards an operator or
            the final choice reads, where a round may be abandoned, and the last one.
        segments: the plan cut after each selection.
        needs_likelihood: whether the log probability of what is drawn has to be known.
    """

    strategy: str
    scale_schedule: ScaleSchedule
    survivors_after: tuple[int, ...]
    selections: tuple[Selection, ...]
    reward_members: int = 1
    combination: RewardCombination | None = None
    joint_component: ComponentSign | None = None
    rounds: Rounds = Rounds()
    final: FinalChoice = FinalChoice()
    looks: tuple[Look, ...] = ()
    scored_scales: tuple[int, ...] = field(init=False, compare=False)
    segments: tuple[Segment, ...] = field(init=False, compare=False, repr=False)
    needs_likelihood: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        last = len(self.scale_schedule) - 1
        assert last >= 0
        assert len(self.survivors_after) == last + 1
        assert self.survivors_after[-1] >= 1
        scales = [selection.scale_index for selection in self.selections]
        assert scales == sorted(set(scales))
        assert all(0 <= scale < last for scale in scales)
        assert all(self.survivors_after[s.scale_index] == s.survivors for s in self.selections)
        scored = {scale for s in self.selections for scale in s.operator.scored_scales(s.scale_index)}
        rejecting = {scale for scale, _ in self.rounds.reject_below}
        assert rejecting <= set(scales)
        scored |= rejecting
        assert all(0 <= scale < last for scale in scored)
        scored |= {last, *self.final.mean_of}
        assert max(scored) == last
        looks = [look.scale_index for look in self.looks]
        assert looks == sorted(set(looks))
        assert set(looks) <= scored - {last}
        assert all(look.ahead_to is None or look.scale_index < look.ahead_to <= last for look in self.looks)
        object.__setattr__(self, "scored_scales", tuple(sorted(scored)))
        assert self.reward_members >= 1
        assert self.final.member is None or self.final.member < self.reward_members
        assert (self.combination is None) == (self.reward_members - (self.final.member is not None) == 1)
        # A combined reward means nothing outside its population.
        assert self.combination is None or self.rounds == Rounds()
        falls = [k for k in range(last + 1) if self.survivors_after[k] != self.population_before[k]]
        assert set(falls) <= set(scales)
        assert all(self.survivors_after[k] < self.population_before[k] for k in falls)
        object.__setattr__(self, "segments", _segments(self))
        needs = Signal.LIKELIHOOD in self.reads or self.final.ties_by_likelihood
        object.__setattr__(self, "needs_likelihood", needs)

    @property
    def num_scales(self) -> int:
        """Scales of the model."""
        return len(self.scale_schedule)

    @property
    def reads(self) -> frozenset[Signal]:
        """What its selections read, any of them."""
        return frozenset().union(*(segment.reads for segment in self.segments))

    @property
    def reads_maps(self) -> bool:
        """Whether rewards are read off feature maps."""
        return any(look.ahead_to is None for look in self.looks)

    @property
    def looks_ahead(self) -> bool:
        """Whether trajectories are run on to be judged."""
        return any(look.ahead_to is not None for look in self.looks)

    @property
    def population_before(self) -> tuple[int, ...]:
        """Trajectories that run scale k: `survivors_after` shifted by one scale."""
        return (self.survivors_after[0], *self.survivors_after[:-1])

    def of_round(self, round_index: int) -> Plan:
        """Return the plan with the populations of one of its rounds."""
        factor = self.rounds.growth[round_index]
        return self if factor == 1 else _scaled(self, factor)

    @property
    def widest(self) -> Plan:
        """The plan with the populations of its widest round."""
        return _scaled(self, max(self.rounds.growth))

    @property
    def alone(self) -> Plan:
        """The plan of a single trajectory, which an abandoned round may be ended with."""
        return _scaled(self, 0)


def selection_words(plan: Plan) -> str:
    """Return which operator stands where: "cluster at 2, 5; resample at 6, 9"; "" without selections."""
    scales: dict[str, list[str]] = {}
    for selection in plan.selections:
        scales.setdefault(selection.operator.name, []).append(str(selection.scale_index))
    return "; ".join(f"{name} at {', '.join(at)}" for name, at in scales.items())


@functools.lru_cache(maxsize=256)
def _scaled(plan: Plan, factor: int) -> Plan:
    """Return a plan with so many times the population, at least one everywhere and for 0 nowhere more."""

    def scaled(survivors: int) -> int:
        return max(1, factor * survivors)

    if factor == 1:
        return plan
    return replace(
        plan,
        survivors_after=tuple(map(scaled, plan.survivors_after)),
        selections=tuple(replace(one, survivors=scaled(one.survivors)) for one in plan.selections),
    )


def _segments(plan: Plan) -> tuple[Segment, ...]:
    population_before = plan.population_before
    ends: list[tuple[int, Selection | None]] = [(s.scale_index, s) for s in plan.selections]
    ends.append((plan.num_scales - 1, None))
    segments: list[Segment] = []
    first_scale = 0
    for index, (last_scale, selection) in enumerate(ends):
        segments.append(
            Segment(
                index=index,
                first_scale=first_scale,
                last_scale=last_scale,
                population=population_before[first_scale],
                selection=selection,
                scored_scales=tuple(s for s in plan.scored_scales if first_scale <= s <= last_scale),
                looks=tuple(one for one in plan.looks if first_scale <= one.scale_index <= last_scale),
            )
        )
        first_scale = last_scale + 1
    return tuple(segments)
