"""The population of one prompt: what was reported, whom the selections kept, how it ends.

Knows nothing of workers. What it decides depends on (plan, run seed, prompt, reports in slot order),
so it is the same whichever workers ran the shards and in whatever order they reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ttsvar_ray.coordination.messages import SegmentReport, ShardTask
from ttsvar_ray.results import FinalImage, PackedBits, PromptResult, ResultImage, SelectionRecord
from ttsvar_ray.search.ensemble import combine
from ttsvar_ray.search.plan import Plan, Segment
from ttsvar_ray.search.selection import Select, SelectionOutcome, rank_images, select
from ttsvar_ray.types import Float32Array, Prompt, SelectionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One member of the population before the last selection, and how it came to be.

    Attributes:
        bits: one entry per finished scale.
        rewards: of this trajectory's lineage, one per finished scored scale; those of an ensemble are
            combined over the population of their scale.
        lineage: its ancestor's slot in the population of each finished segment, its own slot last.
    """

    bits: PackedBits = ()
    rewards: tuple[float, ...] = ()
    lineage: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reported:
    """One slot's part of a report; `rewards` holds the members' scores of each scored scale."""

    features: Float32Array | None
    rewards: tuple[float, ...]
    bits: PackedBits
    image: FinalImage | None


class Population:
    """All trajectories of one prompt in one segment, and the parents that they continue."""

    def __init__(
        self, *, prompt: Prompt, plan: Plan, run_seed: int, selections: Select | None = None
    ) -> None:
        self.prompt = prompt
        self.trace: list[SelectionRecord] = []
        self._plan = plan
        self._run_seed = run_seed
        self._select: Select = select if selections is None else selections
        self._segment = plan.segments[0]
        self._parents: tuple[Trajectory, ...] = ()
        self._parent_slots: tuple[int, ...] = ()
        self._reported: dict[int, _Reported] = {}
        self._seconds = 0.0
        self._counters: Counter[str] = Counter()

    @property
    def segment(self) -> Segment:
        """The segment that runs now."""
        return self._segment

    @property
    def parent_slots(self) -> tuple[int, ...]:
        """Ancestor of each slot in the population before; empty in segment 0."""
        return self._parent_slots

    @property
    def unreported(self) -> tuple[int, ...]:
        """Slots whose segment has not been reported, ascending."""
        return tuple(slot for slot in range(self._segment.population) if slot not in self._reported)

    @property
    def is_complete(self) -> bool:
        """Whether every slot of this segment has been reported."""
        return len(self._reported) == self._segment.population

    def task(self, slots: Sequence[int], *, attempt: int, held_parents: Container[int]) -> ShardTask:
        """Return the task that runs `slots`, with the bits of every parent not in `held_parents`."""
        parent_slots = tuple(self._parent_slots[slot] for slot in slots) if self._parents else ()
        return ShardTask(
            prompt=self.prompt,
            attempt=attempt,
            segment_index=self._segment.index,
            slots=tuple(slots),
            parent_slots=parent_slots,
            parent_bits={
                parent: self._parents[parent].bits
                for parent in sorted(set(parent_slots))
                if parent not in held_parents
            },
        )

    def accept(self, report: SegmentReport) -> str | None:
        """Take in the report of some unreported slots of this segment.

        Returns:
            None, or what is wrong with the report; then nothing was taken in.
        """
        complaint = self._complaint(report)
        if complaint is not None:
            return complaint
        for row, slot in enumerate(report.slots):
            assert slot not in self._reported, f"slot {slot} of {self.prompt.key} reported twice"
            self._reported[slot] = _Reported(
                features=None if report.features is None else report.features[row],
                rewards=tuple(float(reward) for reward in report.rewards[row]),
                bits=report.bits[row],
                image=report.images[row] if self._segment.is_last else None,
            )
        self._seconds += report.seconds
        self._counters.update(report.counters)
        return None

    def advance(self) -> SelectionRecord:
        """Select the survivors and go on to the next segment.

        Returns:
            What was decided; its placement is still open.

        Raises:
            FeatureError, RewardError: the population cannot be compared; another try would see the
                same numbers.
        """
        assert self.is_complete
        selection = self._segment.selection
        assert selection is not None
        trajectories = self._trajectories()
        features = [self._reported[slot].features for slot in range(self._segment.population)]
        outcome = self._select(
            self._plan,
            selection,
            features=np.stack([f for f in features if f is not None]) if features[0] is not None else None,
            reward_history=np.array([t.rewards for t in trajectories], dtype=np.float64),
            run_seed=self._run_seed,
            prompt_key=self.prompt.key,
        )
        record = self._record(outcome, trajectories)
        self._parents = trajectories
        self._parent_slots = record.ancestor_index
        self._reported = {}
        self._segment = self._plan.segments[self._segment.index + 1]
        assert len(self._parent_slots) == self._segment.population
        return record

    def result(self, *, keep: Literal["best", "all"], attempts: int) -> PromptResult:
        """Rank the final images.

        Raises:
            RewardError: a final reward is NaN or infinite.
        """
        assert self.is_complete
        assert self._segment.is_last
        trajectories = self._trajectories()
        ranking = rank_images([trajectory.rewards[-1] for trajectory in trajectories])
        kept = ranking[:1] if keep == "best" else ranking
        return PromptResult(
            prompt=self.prompt,
            images=tuple(self._image(rank, int(slot), trajectories) for rank, slot in enumerate(kept)),
            trace=tuple(self.trace),
            attempts=attempts,
            seconds=self._seconds,
            counters=dict(sorted(self._counters.items())),
        )

    def _trajectories(self) -> tuple[Trajectory, ...]:
        """Return the members of this segment's population with their whole past, in slot order.

        Raises:
            RewardError: a member of an ensemble gave no number.
        """
        rewards = self._combined_rewards()
        members = []
        for slot in range(self._segment.population):
            past = self._parents[self._parent_slots[slot]] if self._parents else Trajectory()
            now = self._reported[slot]
            members.append(
                Trajectory(
                    bits=past.bits + now.bits,
                    rewards=past.rewards + rewards[slot],
                    lineage=(*past.lineage, slot),
                )
            )
        return tuple(members)

    def _combined_rewards(self) -> list[tuple[float, ...]]:
        """Return, in slot order, one reward per scored scale of this segment."""
        population, scales = self._segment.population, len(self._segment.scored_scales)
        members = self._plan.reward_members
        scores = np.array([self._reported[slot].rewards for slot in range(population)], dtype=np.float64)
        scores = scores.reshape(population, scales, members)
        combined = [combine(scores[:, scale], self._plan.combination) for scale in range(scales)]
        return [tuple(float(rewards[slot]) for rewards in combined) for slot in range(population)]

    def _image(self, rank: int, slot: int, trajectories: Sequence[Trajectory]) -> ResultImage:
        image = self._reported[slot].image
        assert image is not None, "the last segment reports one image a slot"
        return ResultImage(
            rank=rank,
            image=image,
            reward=trajectories[slot].rewards[-1],
            reward_history=trajectories[slot].rewards,
            member_rewards=self._reported[slot].rewards[-self._plan.reward_members :],
            lineage=trajectories[slot].lineage,
            bits=trajectories[slot].bits,
        )

    def _record(self, outcome: SelectionOutcome, trajectories: Sequence[Trajectory]) -> SelectionRecord:
        selection = self._segment.selection
        assert selection is not None
        resamples = selection.kind is SelectionKind.RESAMPLE
        return SelectionRecord(
            prompt_key=self.prompt.key,
            scale_index=selection.scale_index,
            kind=selection.kind.value,
            ancestor_index=tuple(int(slot) for slot in outcome.ancestor_index),
            rewards=tuple(t.rewards[-1] for t in trajectories) if resamples else (),
            log_weights=tuple(float(weight) for weight in outcome.log_weights),
            ess=outcome.ess,
            labels=tuple(int(label) for label in outcome.labels),
        )

    def _complaint(self, report: SegmentReport) -> str | None:
        """Return what in a report does not fit the segment, or None."""
        segment = self._segment
        count = len(report.slots)
        scales = segment.last_scale - segment.first_scale + 1
        clusters = segment.selection is not None and segment.selection.kind is SelectionKind.CLUSTER
        features = None if report.features is None else len(report.features)
        expected = (count, len(segment.scored_scales) * self._plan.reward_members)
        problem = None
        if report.rewards.shape != expected:
            problem = f"rewards of shape {expected}, got {report.rewards.shape}"
        elif len(report.bits) != count or any(len(bits) != scales for bits in report.bits):
            problem = f"bits of {count} slots and {scales} scales, got {[len(b) for b in report.bits]}"
        elif clusters and features != count:
            problem = f"features of {count} slots, got {features}"
        elif segment.is_last and len(report.images) != count:
            problem = f"{count} images, got {len(report.images)}"
        return None if problem is None else f"report of segment {segment.index}: expected {problem}"
