"""The workers of a cell: keeps as many up as there should be, however often that fails.

    start --> starting --engine stands--> up (a `WorkerHandle`)
      ^          | fails, dies, or takes too long
      '-back off-'

Every worker has a number, and an incarnation of that number. No number is given up: a worker that fits
nowhere waits in Ray's queue for a node, and one that fails to start is tried again, with longer pauses, as
long as the run goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from ttsvar_ray.cluster.cell_messages import CellSpec
from ttsvar_ray.cluster.failures import RestartPolicy
from ttsvar_ray.cluster.resources import describe_cluster, describe_resources
from ttsvar_ray.cluster.waiting import ClusterWaitError, reason_of, wait_for
from ttsvar_ray.cluster.worker import WorkerActor, WorkerInfo
from ttsvar_ray.coordination.messages import RunBatch
from ttsvar_ray.errors import TtsVarError

STUCK_AFTER = 3
"""Failures in a row of every number after which a cell without workers says that it is stuck."""

RETRY_FIRST_SECONDS = 1.0
RETRY_MOST_SECONDS = 60.0
NOTICE_MOST_SECONDS = 3600.0
NAMES_SHOWN = 4
START_NOTICE_SECONDS = 60.0
"""Until the first notice about workers that are not up yet."""
WORKER_START_SECONDS = 1800.0
"""Until a worker that is not up is started anew."""


@dataclass(slots=True)
class WorkerHandle:
    """A worker that is up.

    Attributes:
        number: which of the run's workers it is; those that replace it have the same.
        actor: Ray's handle.
        batches: sent and not answered yet, oldest first, each with references to its return values; None
            when the worker is up no more.
        num_running: how many of them there are.
        num_answered: micro-batches it has answered.
        is_draining: its node will go; another one is being started in its place.
        is_abandoned: it is about to be killed.
    """

    worker_id: str
    number: int
    actor: Any
    info: WorkerInfo
    batches: asyncio.Queue[tuple[RunBatch, list[Any]] | None] = field(default_factory=asyncio.Queue)
    num_running: int = 0
    num_answered: int = 0
    is_draining: bool = False
    is_abandoned: bool = False


@dataclass(slots=True)
class _Number:
    """One worker over all its incarnations.

    Attributes:
        restarts: after failures in a row since one of them answered.
        start_failures: in a row since one of them was up.
    """

    restarts: RestartPolicy
    incarnations: int = 0
    start_failures: int = 0


def first_workers(spec: CellSpec) -> dict[int, Any]:
    """Ask Ray for the first worker of each number, so that they start while their cell does.

    They belong to this process: when the cell is over, they must be killed here.
    """
    return {number: _ask_for(spec, _worker_id(spec, number, 0)) for number in spec.worker_numbers}


def _ask_for(spec: CellSpec, worker_id: str) -> Any:
    layout = spec.layout
    options = WorkerActor.options(
        num_cpus=layout.cpus, num_gpus=layout.gpus, name=f"{spec.actor_prefix}{worker_id}"
    )
    return options.remote(worker_id, spec.build_engine)


def _worker_id(spec: CellSpec, number: int, incarnation: int) -> str:
    if spec.incarnation == incarnation == 0:
        return f"worker-{number}"
    of_cell = "" if spec.incarnation == 0 else f".{spec.incarnation}"
    return f"worker-{number}{of_cell}.{incarnation}"


class WorkerPool:
    """Starts workers; see the module docstring. Lives in the event loop of its cell."""

    def __init__(
        self,
        spec: CellSpec,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        notice: Callable[[str], None],
        on_up: Callable[[WorkerHandle], bool],
    ) -> None:
        """Start no worker yet.

        Args:
            spawn: runs a coroutine in the background.
            on_up: takes over a worker that is up; whether it keeps it.
        """
        self._spec = spec
        self._spawn = spawn
        self._notice = notice
        self._on_up = on_up
        self._numbers = {
            number: _Number(
                RestartPolicy(
                    name=f"worker-{number}",
                    first_seconds=RETRY_FIRST_SECONDS,
                    most_seconds=RETRY_MOST_SECONDS,
                )
            )
            for number in spec.worker_numbers
        }
        self._starting: dict[str, Any] = {}
        self._last_error = ""
        self._was_any_up = False
        self._unusable: str | None = None

    @property
    def starting(self) -> list[Any]:
        """Actors that are not up yet."""
        return list(self._starting.values())

    @property
    def unusable(self) -> str | None:
        """Why no engine can be built here, if one was tried in vain and no worker was ever up."""
        return None if self._was_any_up else self._unusable

    @property
    def stuck(self) -> str | None:
        """The last error, if of every number several workers in a row have failed to start."""
        tried = all(number.start_failures >= STUCK_AFTER for number in self._numbers.values())
        return self._last_error if tried else None

    def start_all(self, first: Mapping[int, Any]) -> None:
        """Wait for all workers.

        Args:
            first: those of `first_workers`, which somebody has asked Ray for already.
        """
        for number in self._numbers:
            self.start_worker(number, first.get(number))
        self._spawn(self._tell_who_waits())

    def start_worker(self, number: int, actor: Any = None) -> None:
        """Ask Ray for the next incarnation of a worker, unless somebody has."""
        worker_id = _worker_id(self._spec, number, self._numbers[number].incarnations)
        self._numbers[number].incarnations += 1
        self._starting[worker_id] = actor if actor is not None else _ask_for(self._spec, worker_id)
        self._spawn(self._bring_up(worker_id, number, self._starting[worker_id]))

    def restart_worker(self, number: int, reason: str) -> float:
        """Start the next incarnation after a pause that grows with the failures since one of them answered.

        Returns:
            The pause in seconds.
        """
        pause = self._numbers[number].restarts.failed(reason)
        assert pause is not None, "no number is given up"
        self._spawn(self._start_later(number, pause))
        return pause

    def note_answer(self, number: int) -> None:
        """Forget the failures of a number whose worker answered."""
        self._numbers[number].restarts.worked()

    def refuse(self, worker: WorkerHandle, reason: str) -> None:
        """Take note that a worker of this kind can never run the plan."""
        ray.kill(worker.actor)
        self._fail_to_start(worker.worker_id, worker.number, reason, is_unusable=True)

    async def _bring_up(self, worker_id: str, number: int, actor: Any) -> None:
        try:
            info = await wait_for(
                actor.describe.remote(), seconds=WORKER_START_SECONDS, awaited=f"{worker_id} to start"
            )
        except ClusterWaitError as error:
            ray.kill(actor)
            self._fail_to_start(worker_id, number, str(error))
        except RayError as error:
            # An error of our own kind is one of settings, weights or device, raised by `describe`.
            unusable = isinstance(error, TtsVarError)
            self._fail_to_start(worker_id, number, reason_of(error), is_unusable=unusable)
            if unusable:
                ray.kill(actor)
        else:
            del self._starting[worker_id]
            if self._on_up(WorkerHandle(worker_id=worker_id, number=number, actor=actor, info=info)):
                self._numbers[number].start_failures = 0
                self._was_any_up = True

    def _fail_to_start(self, worker_id: str, number: int, reason: str, *, is_unusable: bool = False) -> None:
        self._starting.pop(worker_id, None)
        if is_unusable:
            self._unusable = f"{worker_id} cannot be built: {reason}"
        self._last_error = reason
        self._numbers[number].start_failures += 1
        failures = self._numbers[number].start_failures
        seconds = self.restart_worker(number, reason)
        if failures <= STUCK_AFTER or failures.bit_count() == 1:
            self._notice(f"{worker_id} failed to start: {reason}; another try in {seconds:g} s")

    async def _start_later(self, number: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.start_worker(number)

    async def _tell_who_waits(self) -> None:
        """Say now and then which workers are not up, and what the cluster has."""
        seconds = START_NOTICE_SECONDS
        layout = self._spec.layout
        asked = describe_resources({"CPU": layout.cpus, "GPU": layout.gpus})
        while True:
            before = set(self._starting)
            await asyncio.sleep(seconds)
            waiting = [name for name in self._starting if name in before]
            if waiting:
                names = ", ".join(waiting[:NAMES_SHOWN]) + (", ..." if len(waiting) > NAMES_SHOWN else "")
                self._notice(
                    f"waited {seconds:g} s for {names} to start ({len(waiting)} of {layout.count} workers of "
                    f"this cell, {asked} each); the cluster has {describe_cluster()}"
                )
                seconds = min(2 * seconds, NOTICE_MOST_SECONDS)
