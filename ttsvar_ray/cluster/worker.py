"""The worker actor: one engine on one device, asked by one coordinator.

    cell --run_batch(tasks)--> compute thread: engine.run_segment
                                 reports, small images inside      -> first return value
                                 each image that is not small      -> a return value of its own
    cell --status()----------> io thread: answers while the engine computes

Large images leave as return values, not as objects this actor puts: the cell then owns them, and they
outlive this process. Everything that touches the engine runs in one concurrency group of size one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from ttsvar_ray.coordination.messages import SegmentReport, ShardFailure, ShardTask
from ttsvar_ray.engine.device import device_name
from ttsvar_ray.engine.engine import Engine
from ttsvar_ray.errors import TtsVarError
from ttsvar_ray.results import FinalImage

EngineBuilder = Callable[[], Engine]
"""Builds the engine in the worker's process; travels by pickle, so it holds settings, not weights."""


@dataclass(frozen=True, slots=True)
class PackedBuilder:
    """An engine builder that those on its way hand on unopened: a cell imports nothing that engines need."""

    content: bytes

    @classmethod
    def pack(cls, build_engine: EngineBuilder) -> PackedBuilder:
        """Return a builder packed."""
        return cls(ray.cloudpickle.dumps(build_engine))

    def __call__(self) -> Engine:
        """Open it, and build."""
        build_engine: EngineBuilder = ray.cloudpickle.loads(self.content)
        return build_engine()


INLINE_BYTES = 90_000
"""Image bytes one reply may carry; Ray moves replies beyond 100 KiB to its object store, at three times
the latency."""


@dataclass(frozen=True, slots=True)
class ImageReturn:
    """Payload of an image that is return value number `index` of its `run_batch` call."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """What a worker is, once its engine stands.

    Attributes:
        rows: most trajectories of a micro-batch; one number, or one per segment.
        memory_bytes: what its device can give to trajectories; None where nothing limits it.
        device: what it computes on, for people.
        node_ip, node_id, pid: where it runs.
    """

    worker_id: str
    rows: int | tuple[int, ...]
    memory_bytes: int | None
    model_name: str
    reward_name: str
    device: str
    node_ip: str
    node_id: str
    pid: int


class SegmentWorker:
    """Runs micro-batches; see the module docstring."""

    def __init__(self, worker_id: str, build_engine: EngineBuilder) -> None:
        self._worker_id = worker_id
        self._unusable: TtsVarError | None = None
        try:
            self._engine = build_engine()
        except TtsVarError as error:
            # Raised by `describe`, where its type survives: out of a constructor only its text would.
            self._unusable = error
        self._batch_id: int | None = None
        self._batch_started = 0.0
        self._batches_done = 0

    def __repr__(self) -> str:
        return self._worker_id

    @ray.method(concurrency_group="compute")
    def describe(self) -> WorkerInfo:
        """Answer when the engine stands.

        Raises:
            TtsVarError: the settings or the weights that the engine cannot be built from.
        """
        if self._unusable is not None:
            raise self._unusable
        return WorkerInfo(
            worker_id=self._worker_id,
            rows=self._engine.settings.micro_batch_rows,
            memory_bytes=self._engine.settings.memory_bytes,
            model_name=self._engine.model_name,
            reward_name=self._engine.reward_name,
            device=device_name(on_gpu=bool(ray.get_gpu_ids())),
            node_ip=ray.util.get_node_ip_address(),
            node_id=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
        )

    @ray.method(concurrency_group="compute")
    def run_batch(self, batch_id: int, tasks: Sequence[ShardTask], image_returns: int) -> Any:
        """Run one micro-batch.

        Args:
            image_returns: return values that the caller declared beyond the first.

        Returns:
            The reports and failures; with `image_returns`, a tuple of them and of one encoded image (or
            None) for each further return value.
        """
        self._batch_started = time.monotonic()
        self._batch_id = batch_id
        try:
            results = self._engine.run_segment(tasks)
        finally:
            self._batch_id = None
            self._batches_done += 1
        results, large = split_images(results, inline_bytes=INLINE_BYTES)
        if image_returns == 0:
            assert not large, "images come out of a last segment, whose caller declares returns for them"
            return results
        return (results, *large, *[None] * (image_returns - len(large)))

    @ray.method(concurrency_group="compute")
    def release(self, prompt_key: str, attempt: int) -> None:
        """Forget one attempt at a prompt."""
        self._engine.release(prompt_key, attempt)

    @ray.method(concurrency_group="io")
    def status(self) -> str:
        """Say what it is doing: at once, also while the engine computes."""
        seconds = 0.0 if self._batch_id is None else time.monotonic() - self._batch_started
        return (
            f"micro-batch {self._batch_id} since {seconds:.0f} s, {self._batches_done} done, "
            f"{self._engine.held_trajectories} trajectories of {self._engine.held_prompts} prompts held"
        )


def split_images(
    results: Sequence[SegmentReport | ShardFailure], *, inline_bytes: int
) -> tuple[list[SegmentReport | ShardFailure], list[bytes]]:
    """Take the images out of a reply that would be too large with them.

    Args:
        results: reports whose images carry encoded bytes.
        inline_bytes: image bytes that may stay inside, over the whole reply.

    Returns:
        The results, with `ImageReturn(i)` in place of the i-th image taken out, and those images.
    """
    left = inline_bytes
    large: list[bytes] = []
    split: list[SegmentReport | ShardFailure] = []
    for result in results:
        if isinstance(result, ShardFailure) or not result.images:
            split.append(result)
            continue
        images: list[FinalImage] = []
        for image in result.images:
            if image.payload is None or len(image.payload) <= left:
                left -= len(image.payload or b"")
                images.append(image)
            else:
                images.append(replace(image, payload=ImageReturn(1 + len(large))))
                large.append(image.payload)
        split.append(replace(result, images=tuple(images)))
    return split, large


def join_images(
    results: Sequence[SegmentReport | ShardFailure], returns: Sequence[Any]
) -> tuple[SegmentReport | ShardFailure, ...]:
    """Put the references to large images in their places.

    Args:
        results: the first return value of `run_batch`.
        returns: references to all return values, the first included.
    """

    def placed(image: FinalImage) -> FinalImage:
        if not isinstance(image.payload, ImageReturn):
            return image
        return replace(image, payload=returns[image.payload.index])

    return tuple(
        result
        if isinstance(result, ShardFailure)
        else replace(result, images=tuple(placed(image) for image in result.images))
        for result in results
    )


def image_returns(tasks: Sequence[ShardTask], last_segment: int) -> int:
    """Return how many images `run_batch` may bring for these tasks."""
    return sum(len(task.slots) for task in tasks if task.segment_index == last_segment)


# Not restarted by Ray: a restarted worker has lost its state, and the coordinator must know. Not retried:
# a segment run again on an empty worker would be a stale one. The cell replaces lost workers.
WorkerActor = ray.remote(  # type: ignore[call-overload]  # ray's stubs leave concurrency groups out
    concurrency_groups={"compute": 1, "io": 1}, max_restarts=0, max_task_retries=0
)(SegmentWorker)
