"""The population of one prompt: what was reported, which trajectories the selections kept, how it ends.

    reports -> advance -> SelectionRecord  the next segment, of the survivors; its placement is still open
                          Restarted        another round, or an abandoned one's end, alone; nothing is held
                          Stop             result()

Knows nothing of workers. What it decides depends on (plan, run seed, prompt, reports in slot order),
so it is the same whichever workers ran the shards and in whatever order they reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from ttsvar_ray.coordination.messages import SegmentReport, ShardTask
from ttsvar_ray.results import PackedBits, PromptResult, ResultImage, SelectionRecord
from ttsvar_ray.search.loop import ALONE, Past, Seen
from ttsvar_ray.search.operators.protocol import Choice, Signal
from ttsvar_ray.search.plan import Plan, Segment, Selection
from ttsvar_ray.search.rounds import Begin, RoundEnd, Stop, StopReason, rejection, what_follows
from ttsvar_ray.search.selection import Select, abandoned_record, rank_final, select, selection_record
from ttsvar_ray.types import Float32Array, Int64Array, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """What runs now goes on from nothing that any worker holds, but maybe from bits."""


Step: TypeAlias = SelectionRecord | Restarted | Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class _Abandoned:
    """A round that was given up, and the bits of its best trajectory: of one parent, in slot 0."""

    past: Past
    bits: PackedBits


class Population:
    """All trajectories of one prompt in one segment of one round, and the parents that they continue."""

    def __init__(
        self,
        *,
        prompt: Prompt,
        plan: Plan,
        run_seed: int,
        selections: Select | None = None,
        trace_bits: bool = False,
    ) -> None:
        self.prompt = prompt
        self.key = prompt.key
        self.trace: list[SelectionRecord] = []
        self._whole_plan = plan
        self._run_seed = run_seed
        self._select: Select = select if selections is None else selections
        self._trace_bits = trace_bits
        # How the rounds so far ended, what is left of those that were abandoned, and the final images.
        self._ends: list[RoundEnd] = []
        self._abandoned: dict[int, _Abandoned] = {}
        self._images: list[ResultImage] = []
        self._final_pasts: list[Past] = []
        self._begin_round(0)
        self._seconds = 0.0
        self._counters: Counter[str] = Counter()
        self._trajectories = [0] * len(plan.segments)

    def _begin_round(self, round_index: int) -> None:
        self._round_index = round_index
        self._finishes = False
        # Of this round, from here on.
        self._plan = self._whole_plan.of_round(round_index)
        self._segment = self._plan.segments[0]
        # Of the population before: the past, and the bits of all finished scales.
        self._past = Past.empty(self._segment.population)
        self._bits: tuple[PackedBits, ...] = ((),) * self._segment.population
        self._parent_slots: tuple[int, ...] = ()
        self._await_reports()

    def _await_reports(self) -> None:
        # Each slot's report, and its row there; and the slots without one.
        self._reported: dict[int, tuple[SegmentReport, int]] = {}
        self._unreported = tuple(range(self._segment.population))

    def _finish_round(self, end: RoundEnd) -> None:
        """Go on from the best trajectory of an abandoned round."""
        abandoned = self._abandoned[end.round_index]
        self._round_index = end.round_index
        self._finishes = True
        self._plan = self._whole_plan.alone
        self._segment = next(s for s in self._plan.segments if s.first_scale == end.scale_index + 1)
        self._past, self._bits = abandoned.past, (abandoned.bits,)
        self._parent_slots = (0,)
        self._await_reports()

    @property
    def rounds(self) -> int:
        """Rounds that were begun, this one included."""
        return len({end.round_index for end in self._ends} | {self._round_index})

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
        return self._unreported

    @property
    def is_complete(self) -> bool:
        """Whether every slot of this segment has been reported."""
        return not self._unreported

    def task(self, slots: Sequence[int], *, attempt: int, held_parents: Container[int]) -> ShardTask:
        """Return the task that runs `slots`, with the bits of every parent not in `held_parents`."""
        parent_slots = tuple(self._parent_slots[slot] for slot in slots) if self._parent_slots else ()
        return ShardTask(
            prompt=self.prompt,
            attempt=attempt,
            segment_index=self._segment.index,
            slots=tuple(slots),
            parent_slots=parent_slots,
            parent_bits={
                parent: self._bits[parent]
                for parent in sorted(set(parent_slots))
                if parent not in held_parents
            },
            round_index=self._round_index,
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
            assert slot not in self._reported, f"slot {slot} of {self.key} reported twice"
            self._reported[slot] = (report, row)
        self._unreported = tuple(slot for slot in self._unreported if slot not in self._reported)
        self._seconds += report.seconds
        self._counters.update(report.counters)
        return None

    def advance(self) -> Step:
        """Select the survivors and go on to the next segment, or to another round, or to the end.

        Raises:
            FeatureError, RewardError, SelectionError: the population cannot be compared; another try would
                see the same numbers.
        """
        assert self.is_complete
        past = self._past_now()
        segment, selection = self._segment, self._segment.selection
        self._trajectories[segment.index] += segment.population
        if selection is None:
            self._images += self._final_images(past)
            self._final_pasts.append(past)
            return self._end_round(past)
        missed = None if self._finishes else rejection(self._plan, segment.last_scale, past.reward_history)
        if missed is not None:
            record = abandoned_record(
                self.key, selection, past.latest, missed=missed, round_index=self._round_index
            )
            bits = self._bits_now()
            self.trace.append(self._with_bits(record, bits))
            best = RoundEnd.of(self._round_index, segment.last_scale, past.latest).slot
            self._abandoned[self._round_index] = _Abandoned(past=past.of(best), bits=bits[best])
            return self._end_round(past)
        record = self._selected(selection, past)
        self._past, self._bits = past, self._bits_now()
        record = self._with_bits(record, self._bits)
        self._parent_slots = record.ancestor_index
        self._segment = self._plan.segments[self._segment.index + 1]
        self._await_reports()
        assert len(self._parent_slots) == self._segment.population
        return record

    def result(self, reason: StopReason, *, keep: Literal["best", "all"], attempts: int) -> PromptResult:
        """Rank the final images of all rounds; of equal ones, the earlier first.

        Raises:
            RewardError: a final reward is NaN or infinite.
        """
        pasts = self._final_pasts
        ranking = rank_final(
            self._whole_plan,
            reward_history=np.concatenate([past.reward_history for past in pasts]),
            member_scores=np.concatenate([past.member_scores for past in pasts]),
            log_likelihood=np.concatenate([past.log_likelihood for past in pasts]),
        ).tolist()
        kept = ranking[:1] if keep == "best" else ranking
        assert all(self._images[at].image.payload is not None for at in kept), (
            f"keep {keep!r}: the engine wrote the best image of each shard alone (EngineSettings.keep)"
        )
        return PromptResult(
            prompt=self.prompt,
            images=tuple(replace(self._images[at], rank=rank) for rank, at in enumerate(kept)),
            trace=tuple(self.trace),
            attempts=attempts,
            seconds=self._seconds,
            counters=dict(sorted(self._counters.items())),
            rounds=self.rounds,
            stopped=reason.value,
            trajectories=tuple(self._trajectories),
        )

    def _with_bits(self, record: SelectionRecord, bits: tuple[PackedBits, ...]) -> SelectionRecord:
        return replace(record, bits=bits) if self._trace_bits else record

    def _selected(self, selection: Selection, past: Past) -> SelectionRecord:
        if self._finishes:
            choice = Choice(ancestor_index=ALONE)
        else:
            choice = self._select(
                self._plan,
                selection,
                features=self._features(),
                reward_history=past.reward_history,
                run_seed=self._run_seed,
                prompt_key=self.key,
                round_index=self._round_index,
                log_likelihood=past.log_likelihood,
            )
        return selection_record(
            self.key, selection, past.reward_history, choice=choice, round_index=self._round_index
        )

    def _end_round(self, past: Past) -> Restarted | Stop:
        """Note how this round ended; begin what follows, if anything does.

        Raises:
            RewardError: a reward is NaN or infinite.
        """
        scale = self._segment.last_scale
        self._ends.append(RoundEnd.of(self._round_index, scale, past.latest, was_abandoned=self._finishes))
        following = what_follows(self._whole_plan, self._ends)
        if isinstance(following, Stop):
            return following
        if isinstance(following, Begin):
            self._begin_round(following.round_index)
        else:
            self._finish_round(following.end)
        return Restarted()

    def _final_images(self, past: Past) -> list[ResultImage]:
        """Return the images of this round in slot order; their ranks are still open."""
        images = []
        for slot, bits in enumerate(self._bits_now()):
            report, row = self._reported[slot]
            history = tuple(past.reward_history[slot].tolist())
            images.append(
                ResultImage(
                    rank=0,
                    image=report.images[row],
                    reward=history[-1],
                    reward_history=history,
                    member_rewards=tuple(report.rewards[row, -self._plan.reward_members :].tolist()),
                    lineage=tuple(past.lineage[slot].tolist()),
                    bits=bits,
                    round_index=self._round_index,
                )
            )
        return images

    def _past_now(self) -> Past:
        """Return the past of this segment's population, its own rewards included.

        Raises:
            RewardError: a member of an ensemble gave no number.
        """
        shape = (self._segment.population, len(self._segment.scored_scales), self._plan.reward_members)
        scores = [report.rewards[row] for report, row in self._in_slot_order()]
        logs = [
            report.log_likelihood[row]
            for report, row in self._in_slot_order()
            if report.log_likelihood is not None
        ]
        seen = Seen(
            scores=np.array(scores, dtype=np.float64).reshape(shape),
            log_likelihood=np.array(logs) if self._plan.needs_likelihood else None,
        )
        return self._past.grown(self._ancestor_index(), seen, self._plan)

    def _ancestor_index(self) -> Int64Array:
        """Return each slot's ancestor in the population before; of the first one, itself."""
        return np.array(self._parent_slots or range(self._segment.population), dtype=np.int64)

    def _bits_now(self) -> tuple[PackedBits, ...]:
        ancestors = self._ancestor_index().tolist()
        reports = zip(ancestors, self._in_slot_order(), strict=True)
        return tuple(self._bits[ancestor] + report.bits[row] for ancestor, (report, row) in reports)

    def _features(self) -> Float32Array | None:
        if Signal.FEATURES not in self._segment.reads:
            return None
        features = [
            report.features[row] for report, row in self._in_slot_order() if report.features is not None
        ]
        return np.stack(features)

    def _features_with(self, report: SegmentReport) -> list[Float32Array]:
        """Return the features of a report and of those that were taken in before."""
        reports = [report, *(before for before, _ in self._reported.values())]
        return [each.features for each in reports if each.features is not None]

    def _in_slot_order(self) -> list[tuple[SegmentReport, int]]:
        return [self._reported[slot] for slot in range(self._segment.population)]

    def _complaint(self, report: SegmentReport) -> str | None:
        """Return what in a report does not fit the segment, or None."""
        segment = self._segment
        count = len(report.slots)
        scales = segment.last_scale - segment.first_scale + 1
        needs_features = Signal.FEATURES in segment.reads
        features = None if report.features is None else len(report.features)
        logs = None if report.log_likelihood is None else len(report.log_likelihood)
        expected = (count, len(segment.scored_scales) * self._plan.reward_members)
        problem = None
        if report.rewards.shape != expected:
            problem = f"rewards of shape {expected}, got {report.rewards.shape}"
        elif self._plan.needs_likelihood and logs != count:
            problem = f"log_likelihood of {count} slots, got {logs}"
        elif len(report.bits) != count or any(len(bits) != scales for bits in report.bits):
            problem = f"bits of {count} slots and {scales} scales, got {[len(b) for b in report.bits]}"
        elif needs_features and features != count:
            problem = f"features of {count} slots, got {features}"
        elif needs_features and len(shapes := {each.shape[1:] for each in self._features_with(report)}) > 1:
            problem = f"features of one shape for the whole population, got {sorted(shapes)}"
        elif segment.is_last and len(report.images) != count:
            problem = f"{count} images, got {len(report.images)}"
        return None if problem is None else f"report of segment {segment.index}: expected {problem}"
