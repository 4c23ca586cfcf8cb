"""One device, many prompts: runs a segment of the plan for micro-batches of trajectories.

    tasks --pack--> micro-batch --+-- start, gather held parents, or replay missing ones
                                  +-- advance each scale of the segment with named uniforms
                                  +-- decode only where something looks: scored scales, features
                                  +-- pack bits; in the last segment encode the images
    reports, one per task <-------+

Invariant: what is returned for a trajectory depends on (run seed, prompt, slot, lineage) only; never on
the micro-batch it ran in, on the worker, or on what else was asked in the same call. A failure costs
the shards it belongs to and no others.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ttsvar_ray.coordination.messages import FailureKind, SegmentReport, ShardFailure, ShardTask
from ttsvar_ray.coordination.workload import rows_by_segment
from ttsvar_ray.engine.device import describe, free_device_memory, is_device_lost, is_out_of_memory
from ttsvar_ray.engine.encode import DEFAULT_QUALITY, ENCODE_THREADS, ImageEncoder
from ttsvar_ray.engine.rows import Row, form_micro_batches, rows_of
from ttsvar_ray.engine.segment_runner import RowOutcome, SegmentRunner
from ttsvar_ray.engine.state_store import StateStore
from ttsvar_ray.errors import RewardError, StaleStateError
from ttsvar_ray.features.registry import FeatureExtractor
from ttsvar_ray.models.protocol import NextScaleModel
from ttsvar_ray.results import FinalImage, PackedBits
from ttsvar_ray.rewards.protocol import Reward, RewardEnsemble
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Plan, Segment
from ttsvar_ray.types import WORST_REWARD


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How one engine works; nothing here changes which images come out, but `nonfinite`,
    `selector_decode` and the image file format.

    Attributes:
        micro_batch_rows: most trajectories in one forward pass; one number, or one per segment.
        deterministic: every forward pass has exactly that many rows, also where parents are rebuilt: what a
            trajectory becomes then does not depend on its neighbours on devices that choose kernels by shape.
            The numbers must not rise. Passes are never made smaller: memory that is full fails the shard.
        selector_decode: "full" or "selector": the size of the images that selections look at. Final
            images are always decoded and scored in full.
        nonfinite: "error" fails the shard whose reward is NaN or infinite; "worst" replaces it by
            `WORST_REWARD` and counts it.
        image_format, quality: the files of the final images.
        encode_threads: image files encoded at a time.
        memory_bytes: what this worker can give to trajectories, for whoever places work on it; None where
            only rows limit it.
    """

    micro_batch_rows: int | tuple[int, ...] = 16
    deterministic: bool = False
    selector_decode: str = "full"
    nonfinite: str = "error"
    image_format: str = "png"
    quality: int = DEFAULT_QUALITY
    encode_threads: int = ENCODE_THREADS
    memory_bytes: int | None = None


@dataclass(slots=True)
class _Shard:
    """What has come together for one task so far."""

    task: ShardTask
    outcomes: dict[int, RowOutcome] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    failure: ShardFailure | None = None


class Engine:
    """Runs segments for one worker. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        *,
        model: NextScaleModel,
        reward: Reward | RewardEnsemble,
        extractor: FeatureExtractor | None,
        plan: Plan,
        run_seed: int,
        settings: EngineSettings,
    ) -> None:
        """Bind the parts; everything was validated by whoever built them.

        Args:
            model: the generator; its scale schedule must be the plan's.
            reward: scores decoded images; an ensemble where the plan combines several.
            extractor: turns decoded images into features; None where no selection of the plan reads any.
            plan: what to run.
            run_seed: names the random streams together with prompt, scale and slot.
            settings: see `EngineSettings`.
        """
        if tuple(model.scale_schedule) != tuple(plan.scale_schedule):
            raise ValueError(
                f"plan: made for scales {plan.scale_schedule}, but model {model.name!r} has "
                f"{model.scale_schedule}; compile the plan for this model"
            )
        if extractor is None and Signal.FEATURES in plan.reads:
            raise ValueError("extractor: expected one, because the plan's selections read features; got None")
        self.plan = plan
        self.settings = settings
        self.model_name = model.name
        self._ensemble = reward if isinstance(reward, RewardEnsemble) else RewardEnsemble([reward])
        if len(self._ensemble.members) != plan.reward_members:
            raise ValueError(
                f"reward: the plan expects {plan.reward_members} members, got {len(self._ensemble.members)}; "
                "build both from one configuration"
            )
        self.reward_name = self._ensemble.name
        self._store = StateStore()
        self._encoder = ImageEncoder(
            image_format=settings.image_format, quality=settings.quality, threads=settings.encode_threads
        )
        self._segments = plan.segments
        self.pass_rows = rows_by_segment(settings.micro_batch_rows, plan)
        self._runner = SegmentRunner(
            model=model,
            ensemble=self._ensemble,
            extractor=extractor,
            store=self._store,
            run_seed=run_seed,
            selector_decode=settings.selector_decode,
            segments=plan.segments,
            pass_rows=self.pass_rows if settings.deterministic else None,
        )
        # Rows that are known to fit, by segment: lowered when the device runs out of memory.
        self._limits = dict(enumerate(self.pass_rows))

    @property
    def held_trajectories(self) -> int:
        """Trajectories whose state this engine holds."""
        return self._store.num_trajectories

    @property
    def held_prompts(self) -> int:
        """Attempts at prompts that this engine holds something for."""
        return self._store.num_prompts

    def release(self, prompt_key: str, attempt: int) -> None:
        """Forget one attempt at a prompt; releasing what is not held is no error."""
        self._store.release((prompt_key, attempt))

    def run_segment(self, tasks: Sequence[ShardTask]) -> list[SegmentReport | ShardFailure]:
        """Run one segment for some shards.

        Args:
            tasks: shards of one segment, of different prompts or of one.

        Returns:
            One report or failure per task, in the order of the tasks.
        """
        if not tasks:
            return []
        indices = {task.segment_index for task in tasks}
        assert len(indices) == 1, f"tasks of one call must share a segment, got {sorted(indices)}"
        segment = self._segments[indices.pop()]
        shards = [_Shard(task=task) for task in tasks]

        rows: list[Row] = []
        for index, shard in enumerate(shards):
            task = shard.task
            self._store.forget_before((task.prompt.key, task.attempt), segment.index - 1)
            try:
                self._runner.check_parents(task)
            except StaleStateError as error:
                shard.failure = _failure(task, FailureKind.STALE, error)
                continue
            rows.extend(rows_of(index, task))
        for micro_batch in form_micro_batches(rows, self._limits[segment.index]):
            self._run_micro_batch(segment, micro_batch, shards)
        return [self._result(segment, shard) for shard in shards]

    def _run_micro_batch(self, segment: Segment, rows: list[Row], shards: list[_Shard]) -> None:
        """Run rows; on failure run their shards singly, so that each pays for its own."""
        rows = [row for row in rows if shards[row.task_index].failure is None]
        if not rows:
            return
        started = time.perf_counter()
        try:
            outcomes, counters = self._runner.run(segment, rows)
        except Exception as error:
            if is_device_lost(error):
                raise
            out_of_memory = is_out_of_memory(error)
            failure = describe(error)
        else:
            elapsed = time.perf_counter() - started
            for row, outcome in zip(rows, outcomes, strict=True):
                shards[row.task_index].outcomes[row.slot_index] = outcome
            for index, names in counters.items():
                shards[index].counters.update(names)
            for index in {row.task_index for row in rows}:
                shards[index].seconds += elapsed
            return
        # Only here is the traceback gone, and with it the tensors of the failed pass.
        if out_of_memory and self.settings.deterministic:
            free_device_memory()
            for index in {row.task_index for row in rows}:
                shards[index].failure = _failure(
                    shards[index].task,
                    FailureKind.MEMORY,
                    f"a pass of {self.pass_rows[segment.index]} rows, which engine.deterministic does not "
                    f"halve, took more memory than there is; lower engine.micro_batch_rows ({failure})",
                )
        elif out_of_memory:
            self._run_in_halves(segment, rows, shards, failure)
        else:
            self._run_singly(segment, rows, shards, failure)

    def _run_in_halves(self, segment: Segment, rows: list[Row], shards: list[_Shard], failure: str) -> None:
        free_device_memory()
        if len(rows) == 1:
            shard = shards[rows[0].task_index]
            shard.failure = _failure(shard.task, FailureKind.MEMORY, failure)
            return
        half = (len(rows) + 1) // 2
        self._limits[segment.index] = min(self._limits[segment.index], half)
        for index in {row.task_index for row in rows}:
            shards[index].counters["micro_batches_halved"] += 1
        for part in (rows[:half], rows[half:]):
            self._run_micro_batch(segment, part, shards)

    def _run_singly(self, segment: Segment, rows: list[Row], shards: list[_Shard], failure: str) -> None:
        by_task: dict[int, list[Row]] = {}
        for row in rows:
            by_task.setdefault(row.task_index, []).append(row)
        if len(by_task) == 1:
            shard = shards[rows[0].task_index]
            shard.failure = _failure(shard.task, FailureKind.PROMPT, failure)
            return
        for part in by_task.values():
            self._run_micro_batch(segment, part, shards)

    def _result(self, segment: Segment, shard: _Shard) -> SegmentReport | ShardFailure:
        if shard.failure is not None:
            return shard.failure
        task = shard.task
        outcomes = [shard.outcomes[i] for i in range(len(task.slots))]
        try:
            rewards = self._finite_rewards(segment, shard, outcomes)
            images = self._encode(outcomes) if segment.is_last else ()
        except (RewardError, OSError, ValueError) as error:
            return _failure(task, FailureKind.PROMPT, describe(error))
        bits: tuple[PackedBits, ...] = tuple(outcome.bits for outcome in outcomes)
        return SegmentReport(
            prompt_key=task.prompt.key,
            attempt=task.attempt,
            segment_index=task.segment_index,
            slots=task.slots,
            features=None if outcomes[0].features is None else np.stack([o.features for o in outcomes]),  # type: ignore[misc]
            rewards=rewards,
            bits=bits,
            images=images,
            seconds=shard.seconds,
            counters=dict(shard.counters),
        )

    def _finite_rewards(self, segment: Segment, shard: _Shard, outcomes: Sequence[RowOutcome]) -> np.ndarray:
        """Return float32 [slots, scored scales x members], with the policy applied to what is not finite."""
        members = self._ensemble.members
        shape = (len(outcomes), len(segment.scored_scales) * len(members))
        rewards = np.asarray([o.rewards for o in outcomes], dtype=np.float32).reshape(shape)
        bad = ~np.isfinite(rewards)
        if not bad.any():
            return rewards
        if self.settings.nonfinite == "error":
            row, column = (int(i) for i in np.argwhere(bad)[0])
            scale, member = divmod(column, len(members))
            raise RewardError(
                f"reward {members[member].name!r} of prompt {shard.task.prompt.key!r} at scale "
                f"{segment.scored_scales[scale]}, slot {shard.task.slots[row]}: expected a finite number, "
                f"got {rewards[row, column]}; set reward.nonfinite to 'worst' to go on without such images"
            )
        shard.counters["rewards_not_finite"] += int(bad.sum())
        return np.where(bad, np.float32(WORST_REWARD), rewards)

    def _encode(self, outcomes: Sequence[RowOutcome]) -> tuple[FinalImage, ...]:
        images = [outcome.image for outcome in outcomes]
        assert all(image is not None for image in images), "the last segment decodes every trajectory"
        return tuple(self._encoder.encode([image for image in images if image is not None]))


def _failure(task: ShardTask, kind: FailureKind, error: BaseException | str) -> ShardFailure:
    return ShardFailure(
        prompt_key=task.prompt.key,
        attempt=task.attempt,
        segment_index=task.segment_index,
        slots=task.slots,
        kind=kind,
        error=error if isinstance(error, str) else describe(error),
    )
