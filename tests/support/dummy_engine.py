"""An engine in plain Python: hashes for bits, features and rewards, so that results can be checked.

Every number depends on the named streams of a trajectory's whole lineage and on nothing else. What a
worker holds is a chain of digests: continuing from the wrong parent, or replaying the wrong bits,
changes everything that follows.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ttsvar_ray.coordination.messages import FailureKind, SegmentReport, ShardFailure, ShardTask
from ttsvar_ray.coordination.settings import Workload
from ttsvar_ray.results import FinalImage, PackedBits
from ttsvar_ray.search.loop import Seen, search
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Plan, Segment
from ttsvar_ray.types import Int64Array

FEATURE_DIM = 3

FaultOf = Callable[[ShardTask], FailureKind | None]


def draw_bits(
    run_seed: int, prompt_key: str, scale_index: int, slot: int, past: PackedBits, round_index: int
) -> bytes:
    """Return the "bits" of one scale: a digest of the stream's name and of all bits before."""
    name = f"{run_seed}/{prompt_key}/{scale_index}/{slot}/{round_index}/".encode()
    return hashlib.blake2b(name + b"".join(past), digest_size=8).digest()


# Ten thousand schedules ask for the same few thousand trajectories.
@functools.cache
def reward_of(bits: PackedBits) -> float:
    """Return a float32 reward in [0, 1) of the image that these bits would decode to."""
    return float(np.float32(int.from_bytes(_digest(b"reward", bits)[:3], "little") / 2**24))


@functools.cache
def features_of(bits: PackedBits) -> tuple[float, ...]:
    """Return `FEATURE_DIM` numbers in [0, 1)."""
    digest = _digest(b"features", bits)
    return tuple(digest[i] / 256 for i in range(FEATURE_DIM))


@functools.cache
def image_of(bits: PackedBits) -> FinalImage:
    """Return an "image" that names all the bits it came from."""
    return FinalImage.of_bytes(_digest(b"image", bits), width=4, height=4, image_format="raw")


def _digest(purpose: bytes, bits: PackedBits) -> bytes:
    return hashlib.blake2b(b"".join(bits), digest_size=8, person=purpose).digest()


class DummyEngine:
    """Holds digests as a real engine holds KV caches: last two segments, until released."""

    def __init__(self, *, plan: Plan, run_seed: int, fault_of: FaultOf = lambda task: None) -> None:
        self.replayed = 0
        self._plan = plan
        self._run_seed = run_seed
        self._fault_of = fault_of
        self._held: dict[tuple[str, int], dict[int, dict[int, PackedBits]]] = {}
        # Parents that came as bits: their segment, and they by slot.
        self._rebuilt: dict[tuple[str, int], tuple[int, dict[int, PackedBits]]] = {}

    @property
    def num_held(self) -> int:
        """Trajectories of the newest segment that was run of every attempt."""
        return sum(len(segments[max(segments)]) for segments in self._held.values() if segments)

    @property
    def held_attempts(self) -> set[tuple[str, int]]:
        """(prompt key, attempt) of everything that was not released."""
        return set(self._held)

    def release(self, prompt_key: str, attempt: int) -> None:
        """Forget an attempt."""
        self._held.pop((prompt_key, attempt), None)
        self._rebuilt.pop((prompt_key, attempt), None)

    def forget_everything(self) -> None:
        """Lose all state without telling anyone."""
        self._held.clear()
        self._rebuilt.clear()

    def run_segment(self, tasks: Sequence[ShardTask]) -> list[SegmentReport | ShardFailure]:
        """Run shards of one segment."""
        assert len({task.segment_index for task in tasks}) == 1
        for task in tasks:
            segments = self._held.setdefault((task.prompt.key, task.attempt), {})
            for older in [s for s in segments if s < task.segment_index - 1]:
                del segments[older]
            rebuilt = self._rebuilt.get((task.prompt.key, task.attempt))
            if rebuilt is not None and rebuilt[0] < task.segment_index - 1:
                del self._rebuilt[task.prompt.key, task.attempt]
        return [self._run(task) for task in tasks]

    def held_bytes(self, workload: Workload) -> int:
        """Return what everything held takes."""
        loads = workload.segments
        held = sum(
            loads[index].held_bytes * len(slots)
            for segments in self._held.values()
            for index, slots in segments.items()
        )
        return held + sum(
            loads[index].held_bytes * len(slots.keys() - self._held[key].get(index, {}).keys())
            for key, (index, slots) in self._rebuilt.items()
        )

    def _run(self, task: ShardTask) -> SegmentReport | ShardFailure:
        segment = self._plan.of_round(task.round_index).segments[task.segment_index]
        assert list(task.slots) == sorted(set(task.slots))
        assert all(0 <= slot < segment.population for slot in task.slots)
        assert len(task.parent_slots) == (0 if segment.index == 0 else len(task.slots))
        segments = self._held[(task.prompt.key, task.attempt)]
        fault = self._fault_of(task)
        if fault is not None:
            return ShardFailure.of(task, fault, f"injected {fault.value}")
        key = (task.prompt.key, task.attempt)
        _, rebuilt = self._rebuilt.get(key, (0, {}))
        parents = {**rebuilt, **segments.get(segment.index - 1, {})}
        assert set(task.parent_bits) <= set(task.parent_slots)
        if any(parent not in parents and parent not in task.parent_bits for parent in task.parent_slots):
            return ShardFailure.of(task, FailureKind.STALE, "parent not held")
        if task.parent_bits:
            self.replayed += len(task.parent_bits)
            parents.update(task.parent_bits)
            self._rebuilt[key] = (segment.index - 1, {**rebuilt, **task.parent_bits})
        finished = [
            _run_trajectory(
                segment,
                self._run_seed,
                task.prompt.key,
                slot,
                parents[task.parent_slots[row]] if task.parent_slots else (),
                task.round_index,
            )
            for row, slot in enumerate(task.slots)
        ]
        segments.setdefault(segment.index, {}).update(zip(task.slots, finished, strict=True))
        return _report(self._plan, segment, task, finished)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a search must come to.

    Attributes:
        images: each final image by rank: (payload, reward, reward history, lineage, bits, round).
        rounds, stopped, trajectories: as of a `PromptResult`.
        selections: that were made or missed.
    """

    images: list[tuple[object, ...]]
    rounds: int
    stopped: str
    trajectories: tuple[int, ...]
    selections: int


def reference_outcome(plan: Plan, run_seed: int, prompt_key: str) -> Reference:
    """Search one prompt sequentially, without coordinator, shards or replay."""
    populations: dict[int, list[PackedBits]] = {}
    trajectories = [0] * len(plan.segments)

    def run_segment(segment: Segment, ancestor_index: Int64Array, round_index: int) -> Seen:
        before = populations.get(round_index, [()] * segment.population)
        members = [
            _run_trajectory(segment, run_seed, prompt_key, slot, before[ancestor], round_index)
            for slot, ancestor in enumerate(ancestor_index.tolist())
        ]
        populations[round_index] = members
        trajectories[segment.index] += segment.population
        rewards = [[reward_of(bits[: scale + 1]) for scale in segment.scored_scales] for bits in members]
        shape = (segment.population, len(segment.scored_scales), 1)
        return Seen(
            scores=np.array(rewards, dtype=np.float32).reshape(shape),
            features=np.array([features_of(bits) for bits in members], dtype=np.float32),
            log_likelihood=_log_likelihood(plan, members),
        )

    found = search(plan, run_segment, run_seed=run_seed, prompt_key=prompt_key)
    images: list[tuple[object, ...]] = []
    for place, slot in found.ranking:
        one = found.rounds[place]
        bits = populations[one.end.round_index][slot]
        history = one.past.reward_history[slot].tolist()
        lineage = tuple(one.past.lineage[slot].tolist())
        images.append(
            (image_of(bits).payload, history[-1], tuple(history), lineage, bits, one.end.round_index)
        )
    return Reference(
        images=images,
        rounds=len(populations),
        stopped=found.reason.value,
        trajectories=tuple(trajectories),
        selections=sum(sum(s.selection is not None for s in one.segments) for one in found.rounds),
    )


def _run_trajectory(
    segment: Segment, run_seed: int, prompt_key: str, slot: int, past: PackedBits, round_index: int
) -> PackedBits:
    scales = range(segment.first_scale, segment.last_scale + 1)
    return _drawn_on(scales, run_seed, prompt_key, slot, past, round_index)


@functools.cache
def _drawn_on(
    scales: range, run_seed: int, prompt_key: str, slot: int, past: PackedBits, round_index: int
) -> PackedBits:
    bits = past
    for scale_index in scales:
        bits = (*bits, draw_bits(run_seed, prompt_key, scale_index, slot, bits, round_index))
    return bits


def _log_likelihood(plan: Plan, finished: Sequence[PackedBits]) -> np.ndarray | None:
    return np.array([-abs(reward_of(bits)) for bits in finished]) if plan.needs_likelihood else None


def _report(plan: Plan, segment: Segment, task: ShardTask, finished: Sequence[PackedBits]) -> SegmentReport:
    has_features = Signal.FEATURES in segment.reads
    rewards = [[reward_of(bits[: scale + 1]) for scale in segment.scored_scales] for bits in finished]
    return SegmentReport(
        prompt_key=task.prompt.key,
        attempt=task.attempt,
        segment_index=segment.index,
        slots=task.slots,
        features=np.array([features_of(bits) for bits in finished], np.float32) if has_features else None,
        rewards=np.array(rewards, np.float32).reshape(len(finished), len(segment.scored_scales)),
        bits=tuple(bits[segment.first_scale :] for bits in finished),
        log_likelihood=_log_likelihood(plan, finished),
        images=tuple(image_of(bits) for bits in finished) if segment.is_last else (),
        seconds=1.0,
        counters={"shards": 1},
    )
