"""One device, many prompts: runs a segment of the plan for micro-batches of trajectories.

    tasks --pack--> micro-batch --+-- start, gather held parents, or replay missing ones
                                  +-- advance each scale of the segment with named uniforms
                                  +-- decode only where something looks: scored scales, features
                                  +-- pack bits
    reports, one per task <-------+     in the last segment: image files, by other threads, of shards that are
                                        whole, while the next micro-batch runs

Invariant: what is returned for a trajectory depends on (run seed, prompt, slot, lineage) only; never on
the micro-batch it ran in, on the worker, or on what else was asked in the same call. A failure costs
the shards it belongs to and no others.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import current_thread, main_thread
from typing import Literal

import numpy as np

from ttsvar_ray.coordination.messages import FailureKind, SegmentReport, ShardFailure, ShardTask
from ttsvar_ray.coordination.settings import rows_by_segment
from ttsvar_ray.engine.device import free_device_memory, is_device_lost, is_out_of_memory
from ttsvar_ray.engine.encode import DEFAULT_PNG_LEVEL, DEFAULT_QUALITY, ENCODE_THREADS, ImageEncoder
from ttsvar_ray.engine.rows import Row, StateStore, form_micro_batches, rows_of
from ttsvar_ray.engine.segment_runner import RowOutcome, SegmentRunner
from ttsvar_ray.errors import RewardError, StaleStateError, brief
from ttsvar_ray.features.registry import FeatureExtractor
from ttsvar_ray.models.protocol import KeepsMemory, LooksAhead, NextScaleModel, ScoringModel, ShowsMaps
from ttsvar_ray.results import FinalImage, PackedBits
from ttsvar_ray.rewards.protocol import MapReward, Reward, RewardEnsemble
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Plan, Segment
from ttsvar_ray.search.selection import rank_images
from ttsvar_ray.types import WORST_REWARD, Float32Array


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
        image_format, quality, png_level: the files of the final images.
        keep: "all" writes a file of every final image. "best": of each shard only the image that may turn out
            the best of its prompt; of an ensemble, whose ranking needs the whole population, still all.
        encode_threads: image files encoded at a time.
        draw_threads: threads that draw the uniforms of a scale while the one before runs; 0: none. The
            numbers are the same.
        memory_bytes: what this worker can give to trajectories, for whoever places work on it; None where
            only rows limit it.
    """

    micro_batch_rows: int | tuple[int, ...] = 16
    deterministic: bool = False
    selector_decode: str = "full"
    nonfinite: str = "error"
    image_format: str = "png"
    quality: int = DEFAULT_QUALITY
    png_level: int = DEFAULT_PNG_LEVEL
    keep: Literal["best", "all"] = "all"
    encode_threads: int = ENCODE_THREADS
    draw_threads: int = 0
    memory_bytes: int | None = None


@dataclass(slots=True)
class _Shard:
    """What has come together for one task so far.

    Attributes:
        rewards: as they are reported, once all outcomes are there.
        files: of the last segment, from then on: one per slot, some still being written.
    """

    task: ShardTask
    outcomes: dict[int, RowOutcome] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    failure: ShardFailure | None = None
    rewards: Float32Array | None = None
    files: list[FinalImage | Future[FinalImage]] = field(default_factory=list)


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
        map_reward: MapReward | None = None,
    ) -> None:
        """Bind the parts; everything was validated by whoever built them.

        Args:
            model: the generator; its scale schedule must be the plan's.
            reward: scores decoded images; an ensemble where the plan combines several.
            extractor: turns decoded images into features; None where no selection of the plan reads any.
            run_seed: names the random streams together with prompt, scale and slot.
            map_reward: scores feature maps; None where the plan reads no rewards off them.
        """
        if tuple(model.scale_schedule) != tuple(plan.scale_schedule):
            raise ValueError(
                f"plan: made for scales {plan.scale_schedule}, but model {model.name!r} has "
                f"{model.scale_schedule}; compile the plan for this model"
            )
        if extractor is None and Signal.FEATURES in plan.reads:
            raise ValueError("extractor: expected one, because the plan's selections read features; got None")
        if plan.needs_likelihood and not isinstance(model, ScoringModel):
            raise ValueError(
                f"model: the plan reads likelihoods, and model {model.name!r} has no advance_scored to tell "
                "them; add it, or choose other operators"
            )
        for needed, has, what in (
            (plan.reads_maps, isinstance(model, ShowsMaps) and map_reward is not None, "feature_map"),
            (plan.looks_ahead, isinstance(model, LooksAhead), "look_ahead"),
        ):
            if needed and not has:
                raise ValueError(
                    f"model: the plan judges trajectories by their {what}, and model {model.name!r} has "
                    "none, or nothing here scores it; add it, or leave map_scales and look_ahead"
                )
        self.plan = plan
        self.settings = settings
        self.model = model
        self.model_name = model.name
        self._ensemble = reward if isinstance(reward, RewardEnsemble) else RewardEnsemble([reward])
        if len(self._ensemble.names) != plan.reward_members:
            raise ValueError(
                f"reward: the plan expects {plan.reward_members} members, got {len(self._ensemble.names)}; "
                "build both from one configuration"
            )
        self.reward_name = self._ensemble.name
        self._store = StateStore()
        self._encoder = ImageEncoder(
            image_format=settings.image_format,
            quality=settings.quality,
            threads=settings.encode_threads,
            png_level=settings.png_level,
        )
        self._segments = plan.segments
        self.pass_rows = rows_by_segment(settings.micro_batch_rows, plan)
        self._runner = SegmentRunner(
            model=model,
            ensemble=self._ensemble,
            extractor=extractor,
            map_reward=map_reward,
            store=self._store,
            run_seed=run_seed,
            selector_decode=settings.selector_decode,
            segments=plan.segments,
            pass_rows=self.pass_rows if settings.deterministic else None,
            draw_threads=settings.draw_threads,
            reads_likelihood=plan.needs_likelihood,
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

    def run_segment(
        self, tasks: Sequence[ShardTask], *, every_file: bool = False
    ) -> list[SegmentReport | ShardFailure]:
        """Run one segment for some shards.

        Args:
            tasks: shards of one segment, of different prompts or of one.
            every_file: write a file of every final image, whatever the settings say: for whoever ranks
                images in a way of their own.

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
                shard.failure = ShardFailure.of(task, FailureKind.STALE, brief(error))
                continue
            rows.extend(rows_of(index, task))
        for micro_batch in form_micro_batches(rows, self._limits[segment.index]):
            self._run_micro_batch(segment, micro_batch, shards)
            for shard in shards:
                self._finish(segment, shard, all_files=every_file or self.settings.keep == "all")
        return [self._result(shard) for shard in shards]

    def _run_micro_batch(self, segment: Segment, rows: list[Row], shards: list[_Shard]) -> None:
        """Run rows; on failure run their shards singly, so that each pays for its own."""
        rows = [row for row in rows if shards[row.task_index].failure is None]
        if not rows:
            return
        started = time.perf_counter()
        try:
            outcomes, counters = self._runner.run(segment, rows)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            # Ctrl-C comes to the main thread alone; in any other, a worker's, code has raised it.
            is_pressed = isinstance(error, KeyboardInterrupt) and current_thread() is main_thread()
            if is_pressed or is_device_lost(error):
                raise
            out_of_memory = is_out_of_memory(error)
            failure = brief(error)
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
            self._free_memory()
            for index in {row.task_index for row in rows}:
                shards[index].failure = ShardFailure.of(
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
        self._free_memory()
        if len(rows) == 1:
            shard = shards[rows[0].task_index]
            shard.failure = ShardFailure.of(shard.task, FailureKind.MEMORY, failure)
            return
        half = (len(rows) + 1) // 2
        self._limits[segment.index] = min(self._limits[segment.index], half)
        for index in {row.task_index for row in rows}:
            shards[index].counters["micro_batches_halved"] += 1
        for part in (rows[:half], rows[half:]):
            self._run_micro_batch(segment, part, shards)

    def _free_memory(self) -> None:
        if isinstance(self.model, KeepsMemory):
            self.model.free_memory()
        free_device_memory()

    def _run_singly(self, segment: Segment, rows: list[Row], shards: list[_Shard], failure: str) -> None:
        by_task: dict[int, list[Row]] = {}
        for row in rows:
            by_task.setdefault(row.task_index, []).append(row)
        if len(by_task) == 1:
            shard = shards[rows[0].task_index]
            shard.failure = ShardFailure.of(shard.task, FailureKind.PROMPT, failure)
            return
        for part in by_task.values():
            self._run_micro_batch(segment, part, shards)

    def _finish(self, segment: Segment, shard: _Shard, *, all_files: bool) -> None:
        """Take in a shard's rewards once all of its outcomes are there, and begin to write its files."""
        slots = len(shard.task.slots)
        if shard.failure is not None or shard.rewards is not None or len(shard.outcomes) < slots:
            return
        outcomes = [shard.outcomes[i] for i in range(slots)]
        try:
            shard.rewards = self._finite_rewards(segment, shard, outcomes)
        except RewardError as error:
            shard.failure = ShardFailure.of(shard.task, FailureKind.PROMPT, brief(error))
            return
        if segment.is_last:
            # Ranks follow rewards, and of equal ones the slots: an image behind another of its shard is not
            # the best of the population either.
            one_reward = len(self._ensemble.names) == 1
            best = int(rank_images(shard.rewards[:, -1])[0]) if one_reward and not all_files else None
            shard.files = [
                self._begin_file(outcome, is_kept=best in (None, i)) for i, outcome in enumerate(outcomes)
            ]

    def _begin_file(self, outcome: RowOutcome, *, is_kept: bool) -> FinalImage | Future[FinalImage]:
        assert outcome.image is not None, "the last segment decodes every trajectory"
        if is_kept:
            return self._encoder.begin(outcome.image)
        height, width = outcome.image.shape[:2]
        return FinalImage.unwritten(width=width, height=height, image_format=self.settings.image_format)

    def _result(self, shard: _Shard) -> SegmentReport | ShardFailure:
        if shard.failure is not None:
            return shard.failure
        task = shard.task
        outcomes = [shard.outcomes[i] for i in range(len(task.slots))]
        assert shard.rewards is not None, f"{task.prompt.key}: neither finished nor failed"
        try:
            images = tuple(file.result() if isinstance(file, Future) else file for file in shard.files)
        except (OSError, ValueError) as error:
            return ShardFailure.of(task, FailureKind.PROMPT, brief(error))
        bits: tuple[PackedBits, ...] = tuple(outcome.bits for outcome in outcomes)
        return SegmentReport(
            prompt_key=task.prompt.key,
            attempt=task.attempt,
            segment_index=task.segment_index,
            slots=task.slots,
            features=None if outcomes[0].features is None else np.stack([o.features for o in outcomes]),  # type: ignore[misc]
            rewards=shard.rewards,
            bits=bits,
            log_likelihood=np.array([o.log_likelihood for o in outcomes], dtype=np.float64)
            if self.plan.needs_likelihood
            else None,
            images=images,
            seconds=shard.seconds,
            counters=dict(shard.counters),
        )

    def _finite_rewards(self, segment: Segment, shard: _Shard, outcomes: Sequence[RowOutcome]) -> np.ndarray:
        """Return float32 [slots, scored scales x members], with the policy applied to what is not finite."""
        members = self._ensemble.names
        shape = (len(outcomes), len(segment.scored_scales) * len(members))
        rewards = np.asarray([o.rewards for o in outcomes], dtype=np.float32).reshape(shape)
        bad = ~np.isfinite(rewards)
        if not bad.any():
            return rewards
        if self.settings.nonfinite == "error":
            row, column = (int(i) for i in np.argwhere(bad)[0])
            scale, member = divmod(column, len(members))
            raise RewardError(
                f"reward {members[member]!r} of prompt {shard.task.prompt.key!r} at scale "
                f"{segment.scored_scales[scale]}, slot {shard.task.slots[row]}: expected a finite number, "
                f"got {rewards[row, column]}; set reward.nonfinite to 'worst' to go on without such images"
            )
        shard.counters["rewards_not_finite"] += int(bad.sum())
        return np.where(bad, np.float32(WORST_REWARD), rewards)
