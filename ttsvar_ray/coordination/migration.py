"""Whether survivors move after a selection: the seconds that an imbalance costs against those of replaying.

Staying is free, but a worker with more survivors than the others is done later; moving shares the work, but
each distinct parent is rebuilt once at every worker that it moves to. Both are predicted from the workload,
on top of what the workers have to do already, and the earlier end wins; of equals, the fewer moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ttsvar_ray.coordination.placement import Candidate, Seating
from ttsvar_ray.coordination.workload import Workload
from ttsvar_ray.search.plan import Plan


@dataclass(frozen=True, slots=True)
class Option:
    """A seating and when it would be over, in seconds from now."""

    seating: Seating
    seconds: float


class Migration:
    """Predicts the end of a prompt from where its trajectories sit."""

    def __init__(self, plan: Plan, workload: Workload) -> None:
        """Sum up what remains from each segment on.

        Populations shrink on their way: a worker's part of a population is taken to shrink in step.
        """
        self._replay = tuple(load.replay_seconds for load in workload.segments)
        fixed = 0.0
        per_row = 0.0
        fixed_from: list[float] = []
        per_row_from: list[float] = []
        following = plan.segments[-1].population
        for segment, load in zip(reversed(plan.segments), reversed(workload.segments), strict=True):
            fixed += load.batch_seconds
            per_row = load.row_seconds + per_row * following / segment.population
            following = segment.population
            fixed_from.append(fixed)
            per_row_from.append(per_row)
        self._fixed_from = tuple(reversed(fixed_from))
        self._per_row_from = tuple(reversed(per_row_from))

    def seconds(
        self,
        segment_index: int,
        seating: Seating,
        *,
        parent_of: Mapping[int, int],
        parents_on: Mapping[str, frozenset[int]],
        wait: Mapping[str, float],
        pace: Mapping[str, float],
    ) -> float:
        """Return when the last worker would be done with the prompt.

        Args:
            segment_index: the segment that begins.
            seating: where its slots go.
            parent_of: each slot's parent.
            parents_on: parents that each worker has already.
            wait: seconds of work that each worker has before it.
            pace: how many times longer than predicted each worker takes.
        """
        rows: dict[str, int] = {}
        rebuilt: dict[str, set[int]] = {}
        for slot, worker_id in seating.worker_of.items():
            rows[worker_id] = rows.get(worker_id, 0) + 1
            parent = parent_of[slot]
            if parent not in parents_on[worker_id]:
                rebuilt.setdefault(worker_id, set()).add(parent)
        return max(
            wait[worker_id]
            + pace[worker_id]
            * (
                self._fixed_from[segment_index]
                + count * self._per_row_from[segment_index]
                + len(rebuilt.get(worker_id, ())) * self._replay[segment_index]
            )
            for worker_id, count in rows.items()
        )

    def choose(
        self,
        segment_index: int,
        seatings: Sequence[Seating],
        *,
        parent_of: Mapping[int, int],
        candidates: Sequence[Candidate],
        wait: Mapping[str, float],
        pace: Mapping[str, float],
    ) -> Seating:
        """Return the seating that is over first, with the numbers in its reason.

        Args:
            segment_index: the segment that begins.
            seatings: at least one.
            parent_of: each slot's parent.
            candidates: the workers that the seatings use.
            wait: seconds of work that each worker has before it.
            pace: how many times longer than predicted each worker takes.
        """
        parents_on = {candidate.worker_id: candidate.parents for candidate in candidates}
        options = [
            Option(
                seating,
                self.seconds(
                    segment_index,
                    seating,
                    parent_of=parent_of,
                    parents_on=parents_on,
                    wait=wait,
                    pace=pace,
                ),
            )
            for seating in seatings
        ]
        best = min(options, key=lambda option: (option.seconds, option.seating.moved))
        others = [option for option in options if option.seating.worker_of != best.seating.worker_of]
        if not others:
            return best.seating
        if best.seating.moved:
            other = min(others, key=lambda option: (option.seating.moved, option.seconds))
        else:
            other = min(others, key=lambda option: option.seconds)
        return replace(
            best.seating,
            reason=f"{best.seating.reason}; {best.seconds:.3g} s expected, "
            f"{other.seconds:.3g} s if {other.seating.moved} moved",
        )
