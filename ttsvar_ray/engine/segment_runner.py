"""One segment for one micro-batch on one device: from parents to rewards, features, bits and pixels.

Comes in: trajectories, possibly of many prompts; their parents' states are held here, or are replayed from
the bits that came with the task. Goes out: for each trajectory the rewards and features that operators
read, the bits of this segment, and in the last segment its image. Nothing is selected here, nothing is
decoded that no operator reads, and a row's result never depends on the other rows of its micro-batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ttsvar_ray.coordination.messages import ShardTask
from ttsvar_ray.engine.rows import HeldRow, Row, StateKey, StateStore, pack_rows, unpack_rows
from ttsvar_ray.errors import StaleStateError
from ttsvar_ray.features.registry import FeatureExtractor, extracted
from ttsvar_ray.models.protocol import CutsTexts, LooksAhead, NextScaleModel, ScoringModel, ShowsMaps
from ttsvar_ray.results import PackedBits
from ttsvar_ray.rewards.protocol import MapReward, RewardEnsemble
from ttsvar_ray.rng import bit_uniforms
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Look, Segment
from ttsvar_ray.types import Float32Array, Float64Array, Int64Array, UInt8Array


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """What one trajectory gave in one segment.

    Attributes:
        rewards: one per scored scale of the segment and member of the ensemble, the members side by side; may
            be NaN or infinite.
        features: float32 [feature_dim], or [num_patches, width], where the segment's selection reads them.
        bits: packed, of this segment's scales.
        image: uint8 RGB [height, width, 3] in the last segment.
        log_likelihood: nats of those bits, where the plan reads it.
    """

    rewards: tuple[float, ...]
    features: Float32Array | None
    bits: PackedBits
    image: UInt8Array | None
    log_likelihood: float | None = None


def _state_key(task: ShardTask) -> StateKey:
    """Return the name under which the state of a task's trajectories is held."""
    return (task.prompt.key, task.attempt)


@dataclass(slots=True, kw_only=True, eq=False)
class SegmentRunner:
    """Advances micro-batches; raises what the model, the reward or the extractor raises.

    Attributes:
        model, ensemble, extractor, map_reward, store, run_seed, selector_decode: see `Engine`.
        pass_rows: rows that every forward pass of a segment has, never rising; None: as many as there are
            trajectories.
        reads_likelihood: whether the plan does; the model is a `ScoringModel` then.
        draw_threads: threads that draw the uniforms of a scale while the one before runs; 0 draws them when
            they are needed.
    """

    model: NextScaleModel
    ensemble: RewardEnsemble
    extractor: FeatureExtractor | None
    map_reward: MapReward | None
    store: StateStore
    run_seed: int
    selector_decode: str
    segments: Sequence[Segment]
    pass_rows: tuple[int, ...] | None = None
    reads_likelihood: bool = False
    draw_threads: InitVar[int] = 0
    _drawing: ThreadPoolExecutor | None = field(init=False)

    def __post_init__(self, draw_threads: int) -> None:
        self._drawing = (
            ThreadPoolExecutor(draw_threads, thread_name_prefix="uniforms") if draw_threads else None
        )

    def check_parents(self, task: ShardTask) -> None:
        """Make sure that every parent of a task is held or comes with its bits.

        Raises:
            StaleStateError: a parent is neither held nor sent.
        """
        if task.segment_index == 0:
            return
        missing = [slot for slot in dict.fromkeys(task.parent_slots) if not self._is_known(task, slot)]
        if missing:
            raise StaleStateError(
                f"prompt {task.prompt.key!r}, attempt {task.attempt}: slots {missing} of segment "
                f"{task.segment_index - 1} are not held here and came without bits"
            )

    def run(self, segment: Segment, rows: Sequence[Row]) -> tuple[list[RowOutcome], dict[int, Counter[str]]]:
        """Run one segment for one micro-batch and hold the new states.

        Args:
            segment: which scales, what is scored, how it ends.
            rows: the trajectories; their parents are held or come with the tasks.

        Returns:
            The outcome of each row, and counters by task index.
        """
        counters: dict[int, Counter[str]] = {}
        everyone = _filled_up(rows, self._rows_of_pass(segment.index, len(rows)))
        if segment.index == 0:
            state = self._start([row.task for row in everyone])
        else:
            self._replay_missing(segment, rows, counters)
            state = self._gather_parents(segment, everyone)

        members = len(self.ensemble.names)
        rewards = np.empty((len(rows), len(segment.scored_scales), members), dtype=np.float32)
        log_likelihood = np.zeros(len(rows))
        features: Float32Array | None = None
        images: UInt8Array | None = None
        drawing = self._begin_uniforms(rows, segment.first_scale)
        for scale_index in range(segment.first_scale, segment.last_scale + 1):
            uniforms = np.stack(_filled_up([drawn() for drawn in drawing], len(everyone)))
            if scale_index < segment.last_scale:
                drawing = self._begin_uniforms(rows, scale_index + 1)
            state, logs = self._advanced(state, uniforms)
            log_likelihood += logs[: len(rows)]
            ends = scale_index == segment.last_scale
            embedded = ends and Signal.FEATURES in segment.reads
            scored, look = scale_index in segment.scored_scales, segment.look(scale_index)
            final = ends and segment.is_last
            if look is not None:
                rewards[:, segment.scored_scales.index(scale_index)] = self._looked(look, state, rows)
            if not (final or embedded or (scored and look is None)):
                continue
            # All rows are decoded, and those that fill up are dropped: shapes stay what they are. What scores
            # images has batches of its own.
            images = self.model.decode(state, size="full" if final else self.selector_decode)[: len(rows)]
            if scored and look is None:
                scores = self.ensemble.score(images, [row.task.prompt.text for row in rows])
                rewards[:, segment.scored_scales.index(scale_index)] = scores.rewards
                if final:
                    self._count_cut_texts(rows, scores.cut_texts, counters)
            if embedded:
                assert self.extractor is not None, "a plan that reads features has an extractor"
                features = extracted(self.extractor, images)

        scales = self.model.bits(state)[segment.first_scale : segment.last_scale + 1]
        packed = pack_rows([np.asarray(scale, dtype=np.uint8) for scale in scales])
        if not segment.is_last:
            state = self._first_rows(state, len(everyone), len(rows))
            for index, row in enumerate(rows):
                self.store.hold(_state_key(row.task), segment.index, row.slot, HeldRow(state, index))
        outcomes = [
            RowOutcome(
                rewards=tuple(float(r) for r in rewards[i].flat),
                features=None if features is None else features[i],
                bits=packed[i],
                image=images[i] if segment.is_last and images is not None else None,
                log_likelihood=float(log_likelihood[i]) if self.reads_likelihood else None,
            )
            for i in range(len(rows))
        ]
        return outcomes, counters

    def _looked(self, look: Look, state: Any, rows: Sequence[Row]) -> Float32Array:
        """Return the rewards [rows, members] of trajectories that no decode of what is there judges.

        The state stays what it is, whatever was run on from it.
        """
        texts = [row.task.prompt.text for row in rows]
        if look.ahead_to is not None:
            assert isinstance(self.model, LooksAhead)
            ahead = self.model.look_ahead(state, look.ahead_to)
            images = self.model.decode(ahead, size=self.selector_decode)[: len(rows)]
            return self.ensemble.score(images, texts).rewards
        assert isinstance(self.model, ShowsMaps)
        assert self.map_reward is not None, "a plan that reads maps has what scores them"
        maps = self.model.feature_map(state)[: len(rows)]
        scores = np.asarray(self.map_reward.score_maps(maps, texts), dtype=np.float32)
        if scores.shape != (len(rows),):
            raise ValueError(
                f"map reward: expected one score for each of {len(rows)} maps, got shape {scores.shape}"
            )
        return scores[:, None]

    def _count_cut_texts(
        self, rows: Sequence[Row], by_rewards: Int64Array, counters: dict[int, Counter[str]]
    ) -> None:
        """Count, once a prompt, who cut its text, model or rewards: with slot 0 of the last segment.

        Counters are summed over the shards of a prompt, and rows must not show how it was sharded.
        """
        for row, cut in zip(rows, by_rewards, strict=True):
            if row.slot != 0:
                continue
            by_model = isinstance(self.model, CutsTexts) and self.model.cuts_text(row.task.prompt.model_text)
            found = {"text_truncated": int(by_model), "reward_texts_truncated": int(cut)}
            counted = {name: count for name, count in found.items() if count}
            if counted:
                counters.setdefault(row.task_index, Counter()).update(counted)

    def _is_known(self, task: ShardTask, parent_slot: int) -> bool:
        held = self.store.find(_state_key(task), task.segment_index - 1, parent_slot)
        return held is not None or parent_slot in task.parent_bits

    def _advanced(self, state: Any, uniforms: Float32Array) -> tuple[Any, Float64Array]:
        """Return the state after one more scale, and how likely it is; zeros where nobody asks."""
        if self.reads_likelihood:
            assert isinstance(self.model, ScoringModel)
            return self.model.advance_scored(state, uniforms)
        return self.model.advance(state, uniforms), np.zeros(len(uniforms))

    def _begin_uniforms(self, rows: Sequence[Row], scale_index: int) -> list[Callable[[], Float32Array]]:
        """Return, for each row, what gives its float32 [bits of the scale] from its own named stream."""
        height, width = self.model.scale_schedule[scale_index]
        count = height * width * self.model.bits_per_token
        draws = [
            partial(
                bit_uniforms,
                self.run_seed,
                row.task.prompt.key,
                scale_index,
                row.slot,
                count,
                row.task.round_index,
            )
            for row in rows
        ]
        if self._drawing is None:
            return list(draws)
        return [self._drawing.submit(draw).result for draw in draws]

    def _rows_of_pass(self, segment_index: int, rows: int) -> int:
        """Return how many rows a pass of a segment has that is made for so many trajectories."""
        return rows if self.pass_rows is None else self.pass_rows[segment_index]

    def _first_rows(self, state: Any, rows: int, wanted: int) -> Any:
        """Return the first of a state's rows; the state itself where that is all of them."""
        return state if rows == wanted else self.model.gather(state, range(wanted))

    def _start(self, tasks: Sequence[ShardTask]) -> Any:
        """Return a state before scale 0 with one row per entry of `tasks`, in order.

        Texts are encoded one at a time, so that no text is padded by its neighbours.
        """
        runs: list[tuple[ShardTask, int]] = []
        for task in tasks:
            if runs and _state_key(runs[-1][0]) == _state_key(task):
                runs[-1] = (task, runs[-1][1] + 1)
            else:
                runs.append((task, 1))
        return self._stack([self.model.start(self._text(task), [0] * n) for task, n in runs])

    def _text(self, task: ShardTask) -> Any:
        text = task.prompt.model_text
        return self.store.text(_state_key(task), lambda: self.model.encode_text([text]))

    def _stack(self, states: list[Any]) -> Any:
        return states[0] if len(states) == 1 else self.model.concatenate(states)

    def _replay_missing(
        self, segment: Segment, rows: Sequence[Row], counters: dict[int, Counter[str]]
    ) -> None:
        """Rebuild each parent that is not held from its bits, once, and hold it."""
        before = segment.index - 1
        missing: dict[tuple[StateKey, int], Row] = {}
        for row in rows:
            name = (_state_key(row.task), row.parent_slot)
            if name not in missing and self.store.find(name[0], before, name[1]) is None:
                missing[name] = row
        if not missing:
            return
        parents = list(missing.values())
        bits = unpack_rows(
            [row.task.parent_bits[row.parent_slot] for row in parents],
            scale_schedule=self.model.scale_schedule,
            bits_per_token=self.model.bits_per_token,
        )
        if len(bits) != segment.first_scale:
            raise ValueError(
                f"parent bits: expected the {segment.first_scale} scales before segment "
                f"{segment.index}, got {len(bits)}"
            )
        present = self._rows_of_pass(0, len(parents))
        state = self._start([row.task for row in _filled_up(parents, present)])
        # Each scale with as many rows as it had when it ran first; their number never rises.
        for earlier in self.segments[: segment.index]:
            wanted = self._rows_of_pass(earlier.index, len(parents))
            state = self._first_rows(state, present, wanted)
            present = wanted
            scales = bits[earlier.first_scale : earlier.last_scale + 1]
            state = self.model.replay(state, [np.stack(_filled_up(scale, wanted)) for scale in scales])
        state = self._first_rows(state, present, len(parents))
        for index, row in enumerate(parents):
            self.store.hold(_state_key(row.task), before, row.parent_slot, HeldRow(state, index))
            counters.setdefault(row.task_index, Counter())["parents_replayed"] += 1

    def _gather_parents(self, segment: Segment, rows: Sequence[Row]) -> Any:
        """Return a state whose rows are the rows' parents, in order."""
        pieces: list[tuple[Any, list[int]]] = []
        for row in rows:
            held = self.store.find(_state_key(row.task), segment.index - 1, row.parent_slot)
            assert held is not None, f"parent {row.parent_slot} of {row.task.prompt.key} is not held"
            if pieces and pieces[-1][0] is held.state:
                pieces[-1][1].append(held.row)
            else:
                pieces.append((held.state, [held.row]))
        return self._stack([self.model.gather(state, picked) for state, picked in pieces])


_T = TypeVar("_T")


def _filled_up(items: Iterable[_T], count: int) -> list[_T]:
    """Return the items and the last one as often as it takes to have `count`."""
    filled = list(items)
    return filled + filled[-1:] * (count - len(filled))
