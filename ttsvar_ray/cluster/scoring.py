"""Side tables of a run on a Ray cluster: one actor a worker, one part of the output at a time.

A part that is made twice, because an actor was lost, has the same bytes: nothing here needs a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from ttsvar_ray.cluster.session import ray_session
from ttsvar_ray.cluster.waiting import timeout_message
from ttsvar_ray.dataset import OutputLayout
from ttsvar_ray.errors import RunFailedError, TtsVarError
from ttsvar_ray.evaluate.score_table import score_part
from ttsvar_ray.evaluate.scorers import ScorerSpec

ACTOR_RESTARTS = 3
TASK_RETRIES = 3
PART_TIMEOUT_SECONDS = 3600.0
"""Until a cluster that answers nothing is given up."""


class _Scorers:
    """Scores parts; loads each scorer when its first part comes."""

    def __init__(self, root: str) -> None:
        self._layout = OutputLayout(root)
        self._built: dict[str, Any] = {}

    def score(self, spec: ScorerSpec, chunk: int) -> int:
        if spec.table not in self._built:
            self._built[spec.table] = spec.build()
        return score_part(self._layout, chunk, spec.table, self._built[spec.table], spec.basis)


def score_on_ray(
    root: str,
    work: Sequence[tuple[ScorerSpec, int]],
    *,
    address: str | None,
    workers: int,
    gpus: float,
    tell: Callable[[int], None] = lambda images: None,
) -> None:
    """Score parts on a cluster.

    Args:
        root: URI or absolute path of the output, which every worker reaches.
        work: scorers and the chunks they have to score.
        address: of a Ray cluster; None is one on this machine.
        workers: actors.
        gpus: of each.
        tell: called with the images of each finished part.

    Raises:
        ClusterConnectionError: no cluster at the address.
        RunFailedError: a part that cannot be scored; what is done stays, the same call goes on.
    """
    with ray_session(address, cpus=float(workers), run_name="ttsvar-ray score"):
        make: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=ACTOR_RESTARTS)(_Scorers)
        idle: list[Any] = [
            make.options(name=None, max_task_retries=TASK_RETRIES).remote(root) for _ in range(workers)
        ]
        waiting = list(reversed(work))
        running: dict[Any, tuple[Any, ScorerSpec, int]] = {}
        while waiting or running:
            while waiting and idle:
                (spec, chunk), actor = waiting.pop(), idle.pop()
                running[actor.score.remote(spec, chunk)] = (actor, spec, chunk)
            done, _ = ray.wait(list(running), num_returns=1, timeout=PART_TIMEOUT_SECONDS)
            if not done:
                raise RunFailedError(timeout_message(PART_TIMEOUT_SECONDS, "the scores of a part"))
            actor, spec, chunk = running.pop(done[0])
            try:
                tell(ray.get(done[0]))
            except ray.exceptions.RayTaskError as error:
                cause = error.cause if isinstance(error.cause, TtsVarError) else error
                raise RunFailedError(
                    f"{spec.name}: part {chunk} could not be scored: {cause}; what is done is kept, the same "
                    "command goes on"
                ) from error
            except ray.exceptions.RayError as error:
                raise RunFailedError(
                    f"{spec.name}: part {chunk} could not be scored, its worker was lost {TASK_RETRIES + 1} "
                    f"times ({error}); the same command goes on"
                ) from error
            idle.append(actor)
