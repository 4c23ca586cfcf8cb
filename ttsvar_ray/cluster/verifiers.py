"""A reward in actors of its own beside the workers: replicas, and what asks them from inside a worker.

    engine --images, texts--> PooledRewards --pieces of a few images--> _Replica.score, whichever is free
                                    ^------------- float32 scores ------------'

Invariants: an image's score depends neither on the replica that gave it nor on what else that was asked, so
that outputs are those of a reward inside the worker. A worker has at most one piece out at each replica. A
replica that dies is started anew by Ray, which asks it again; no wait is without a limit, after which the
worker's micro-batch has failed as it would with a reward that raised.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from ttsvar_ray.cluster.resources import WorkerLayout, describe_resources
from ttsvar_ray.cluster.waiting import ClusterWaitError, get, reason_of, timeout_message
from ttsvar_ray.engine.device import is_device_lost, is_out_of_memory
from ttsvar_ray.engine.engine import Engine
from ttsvar_ray.errors import ConfigurationError, RewardError, TtsVarError, brief
from ttsvar_ray.rewards.protocol import EnsembleScores, RewardEnsemble
from ttsvar_ray.types import UInt8Array

if TYPE_CHECKING:
    # No replica and no worker waits for what the driver alone is given.
    from ttsvar_ray.config.running import VerifiersConfig
    from ttsvar_ray.job.runnable import JobParts

logger = logging.getLogger(__name__)

MOST_IMAGES = 8
"""Of one piece: 25 MB at 1024 x 1024."""


class _Replica:
    """Holds the rewards of a job; see the module docstring."""

    def __init__(self, build: Callable[[], RewardEnsemble]) -> None:
        self._unusable: TtsVarError | None = None
        try:
            self._rewards = build()
        except TtsVarError as error:
            # Raised by `describe`, where its type survives: out of a constructor only its text would.
            self._unusable = error

    def describe(self) -> tuple[str, tuple[str, ...]]:
        """Return the name of the whole and those of its members, when they are loaded.

        Raises:
            TtsVarError: the settings or the weights that they cannot be built from.
        """
        if self._unusable is not None:
            raise self._unusable
        return self._rewards.name, self._rewards.names

    def score(self, images: UInt8Array, texts: Sequence[str]) -> EnsembleScores:
        """Score uint8 RGB [n, height, width, 3] against n texts."""
        try:
            return self._rewards.score(images, texts)
        except (Exception, SystemExit) as error:
            if is_device_lost(error):
                os._exit(1)  # Nothing runs on the device any more in this process: Ray starts another.
            if isinstance(error, TtsVarError) or is_out_of_memory(error):
                raise
            # In words: which line of whose code it was is known here alone.
            raise RewardError(f"a reward failed in a verifier: {brief(error)}") from error


class PooledRewards(RewardEnsemble):
    """The rewards of a job, asked of replicas. Not thread-safe: one caller at a time."""

    def __init__(self, replicas: Sequence[str], *, timeout_seconds: float) -> None:
        """Wait until the first replica has loaded them.

        Args:
            replicas: names of actors.
            timeout_seconds: most that a wait takes.

        Raises:
            TtsVarError: rewards that cannot be built.
            ClusterWaitError: no replica in time.
        """
        self._seconds = timeout_seconds
        self._replicas = [ray.get_actor(name) for name in replicas]
        described = self._replicas[0].describe.remote()
        try:
            self.name, self.names = get(
                described,
                seconds=timeout_seconds,
                awaited=f"the reward of {replicas[0]} (verifiers.timeout_s)",
            )
        except RayTaskError as error:
            raise _cause(error) from None
        # Workers begin at different ones.
        self._first = os.getpid() % len(self._replicas)

    def score(self, images: UInt8Array, texts: Sequence[str]) -> EnsembleScores:
        """Score uint8 RGB [n, height, width, 3] against n texts.

        Raises:
            RewardError: all replicas are lost.
            ClusterWaitError: no score in time.
        """
        rewards = np.empty((len(images), len(self.names)), dtype=np.float32)
        cut_texts = np.zeros(len(images), dtype=np.int64)
        size = min(MOST_IMAGES, -(-len(images) // len(self._replicas)))
        pieces = deque(slice(first, first + size) for first in range(0, len(images), size))
        free = deque(self._replicas)
        free.rotate(-self._first)
        running: dict[Any, tuple[Any, slice]] = {}
        while pieces or running:
            while pieces and free:
                replica, piece = free.popleft(), pieces.popleft()
                running[replica.score.remote(images[piece], list(texts[piece]))] = (replica, piece)
            if not running:
                raise RewardError("verifiers: all replicas are lost, and Ray starts no other")
            done, _ = ray.wait(list(running), num_returns=1, timeout=self._seconds)
            if not done:
                awaited = f"scores of {len(images)} images by the verifiers (verifiers.timeout_s)"
                raise ClusterWaitError(timeout_message(self._seconds, awaited))
            replica, piece = running.pop(done[0])
            try:
                scores: EnsembleScores = ray.get(done[0])
            except RayTaskError as error:
                raise _cause(error) from None
            except RayError as error:
                logger.warning("a verifier is lost for good (%s)", reason_of(error))
                pieces.append(piece)
                continue
            free.append(replica)
            rewards[piece], cut_texts[piece] = scores.rewards, scores.cut_texts
        return EnsembleScores(rewards=rewards, cut_texts=cut_texts)


def _cause(error: RayTaskError) -> BaseException:
    """Return what a replica raised, without what Ray puts around it."""
    return error.cause if isinstance(error.cause, BaseException) else error


class VerifierPool:
    """The replicas of one session of a job; belongs to the driver.

    Args:
        layout: how many, and their resources.
        actor_prefix: begins their names among the actors of the cluster.

    Raises:
        ConfigurationError: parts whose reward only they can build.
    """

    def __init__(
        self, parts: JobParts, layout: WorkerLayout, *, actor_prefix: str, settings: VerifiersConfig
    ) -> None:
        if parts.build_rewards is None or parts.build_engine_around is None:
            raise ConfigurationError(
                "verifiers.replicas: expected 0, since this job brings a reward as an object, which stays "
                f"inside the workers, got {settings.replicas}; name the reward in the settings"
            )
        self._names = [f"{actor_prefix}verifier-{number}" for number in range(layout.count)]
        self._around, self._seconds = parts.build_engine_around, settings.timeout_s
        # Endless restarts: what never answers ends by the time-out of who asks.
        make: Any = ray.remote(num_cpus=layout.cpus, num_gpus=layout.gpus, max_restarts=-1)(_Replica)
        self._actors = [
            make.options(name=name, max_task_retries=-1).remote(parts.build_rewards) for name in self._names
        ]

    @property
    def build_engine(self) -> Callable[[], Engine]:
        """What builds an engine in a worker whose rewards are these."""
        return partial(self._around, partial(PooledRewards, self._names, timeout_seconds=self._seconds))

    def stop(self) -> None:
        """End all replicas."""
        for actor in self._actors:
            ray.kill(actor)


def lay_out_replicas(
    settings: VerifiersConfig, resources: Mapping[str, float], *, on_gpu: bool
) -> tuple[WorkerLayout, dict[str, float]]:
    """Return the replicas, and what they leave of a cluster to the workers.

    Args:
        resources: Ray's totals of the cluster.
        on_gpu: whether the workers have GPUs.

    Raises:
        ConfigurationError: they do not fit, or leave nothing.
    """
    given = settings.gpus_per_replica
    each = {"CPU": settings.cpus_per_replica, "GPU": float(on_gpu) if given is None else given}
    left = {**resources, **{name: resources.get(name, 0.0) - settings.replicas * each[name] for name in each}}
    if min(left["CPU"], left["GPU"]) < 0:
        raise ConfigurationError(
            f"verifiers: expected room for {settings.replicas} replicas of {describe_resources(each)} beside "
            f"the workers, got a cluster with {describe_resources(resources)}; lower verifiers.replicas, "
            "gpus_per_replica or cpus_per_replica, or add nodes first"
        )
    return WorkerLayout(count=settings.replicas, cpus=each["CPU"], gpus=each["GPU"]), left
