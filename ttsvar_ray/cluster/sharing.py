"""Independent pieces of work on finished images, shared on a Ray cluster: parts to score, images to judge.

    pieces --one to each worker that is free--> _Worker.do --> results, as they come

As many pieces are out as there are workers, and the next is asked for when one is back: what is held does not
grow with the work. A piece that is done twice, because a worker was lost, has the same result: nothing here
needs a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

from ttsvar_ray.cluster.session import ray_session
from ttsvar_ray.cluster.waiting import reason_of, timeout_message
from ttsvar_ray.errors import RunFailedError, TtsVarError, doing

Piece = TypeVar("Piece")
Result = TypeVar("Result")

WORKER_RESTARTS = 3
PIECE_RETRIES = 3
PIECE_TIMEOUT_SECONDS = 3600.0
"""Until a cluster that answers nothing is given up."""


class _Worker:
    """Does pieces; loads what it needs for them when the first one comes."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        self._build = build
        self._do: Callable[[Any], Any] | None = None

    def do(self, piece: Any, name: str) -> Any:
        with doing(name):  # here, where the lines of the user's code are known
            if self._do is None:
                self._do = self._build()
            return self._do(piece)


def share_on_ray(
    pieces: Iterable[Piece],
    build: Callable[[], Callable[[Piece], Result]],
    *,
    name_of: Callable[[Piece], str],
    address: str | None,
    workers: int,
    gpus: float,
    run_name: str,
) -> Iterator[tuple[Piece, Result]]:
    """Yield each piece with its result, in the order in which they are done.

    Args:
        pieces: asked for one at a time; each travels to one worker.
        build: called once in each worker; returns what does a piece there. Travels by pickle, so it holds
            names and paths, which every worker reaches.
        name_of: of a piece, for messages.
        address: of a Ray cluster; None is one on this machine.
        workers: actors.
        gpus: of each.
        run_name: told to the cluster.

    Raises:
        ClusterConnectionError: no cluster at the address.
        TtsVarError: what doing a piece raised; a PieceError where that was an error of other code.
        RunFailedError: a piece whose workers are lost, or do not answer.
    """
    with ray_session(address, cpus=float(workers), run_name=run_name):
        make: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=WORKER_RESTARTS)(_Worker)
        idle = [make.options(max_task_retries=PIECE_RETRIES).remote(build) for _ in range(workers)]
        everyone = list(idle)
        running: dict[Any, tuple[Any, Piece]] = {}
        left = iter(pieces)
        try:
            while True:
                while idle and (piece := next(left, None)) is not None:
                    actor = idle.pop()
                    running[actor.do.remote(piece, name_of(piece))] = (actor, piece)
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1, timeout=PIECE_TIMEOUT_SECONDS)
                if not done:
                    awaited = name_of(next(iter(running.values()))[1])
                    raise RunFailedError(timeout_message(PIECE_TIMEOUT_SECONDS, awaited))
                actor, piece = running.pop(done[0])
                idle.append(actor)
                yield piece, _result(done[0], name_of(piece))
        finally:
            for actor in everyone:  # a cluster that was there before goes on without them
                ray.kill(actor)


def _result(ref: Any, name: str) -> Any:
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, TtsVarError):
            raise error.cause from error
        raise RunFailedError(
            f"{name} failed, its worker was lost {PIECE_RETRIES + 1} times ({reason_of(error)}); what is "
            "done is kept, the same command goes on"
        ) from error
