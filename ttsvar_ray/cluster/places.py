"""The places of a cell: keeps a worker in each, however often that fails.

    fill --> starting --engine stands--> up (a `Member`)
      ^         | fails, dies, or takes too long
      '-back off'

Nothing is given up for good: a worker that fits nowhere waits in Ray's queue for a node, and one that fails
to start is tried again, with longer pauses, as long as the run goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from ttsvar_ray.cluster.cell_messages import CellSpec
from ttsvar_ray.cluster.pace import back_off
from ttsvar_ray.cluster.resources import describe_cluster, describe_resources
from ttsvar_ray.cluster.waiting import ClusterWaitError, reason_of, wait_for
from ttsvar_ray.cluster.worker import WorkerActor, WorkerInfo
from ttsvar_ray.coordination.messages import RunBatch
from ttsvar_ray.errors import TtsVarError

STUCK_AFTER = 3
"""Failures in a row of every place after which a cell without workers says that it is stuck."""

RETRY_FIRST_S = 1.0
RETRY_MOST_S = 60.0
NOTICE_MOST_S = 3600.0
NAMES_SHOWN = 4
START_NOTICE_SECONDS = 60.0
"""Until the first notice about workers that are not up yet."""
WORKER_START_SECONDS = 1800.0
"""Until a worker that is not up is started anew."""


@dataclass(slots=True)
class Member:
    """A worker that is up.

    Attributes:
        batches: sent and not answered yet, oldest first, each with references to its return values; None
            when the worker is a member no more.
        num_running: how many of them there are.
        num_answered: micro-batches it has answered.
        is_draining: its node will go; another one is being started in its place.
        is_abandoned: it is about to be killed.
    """

    worker_id: str
    place: int
    handle: Any
    info: WorkerInfo
    batches: asyncio.Queue[tuple[RunBatch, list[Any]] | None] = field(default_factory=asyncio.Queue)
    num_running: int = 0
    num_answered: int = 0
    is_draining: bool = False
    is_abandoned: bool = False


class Places:
    """Starts workers; see the module docstring. Lives in the event loop of its cell."""

    def __init__(
        self,
        spec: CellSpec,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        notice: Callable[[str], None],
        on_up: Callable[[Member], None],
    ) -> None:
        """Start with empty places.

        Args:
            spec: what to start.
            spawn: runs a coroutine in the background.
            notice: tells people.
            on_up: takes over a worker that is up.
        """
        self._spec = spec
        self._spawn = spawn
        self._notice = notice
        self._on_up = on_up
        self._generation: dict[int, int] = {}
        self._failures: dict[int, int] = dict.fromkeys(spec.places, 0)
        self._start_failures: dict[int, int] = dict.fromkeys(spec.places, 0)
        self._starting: dict[str, Any] = {}
        self._last_error = ""
        self.unusable: str | None = None

    @property
    def starting(self) -> list[Any]:
        """Handles of the workers that are not up yet."""
        return list(self._starting.values())

    @property
    def stuck(self) -> str | None:
        """The last error, if in every place several workers in a row have failed to start."""
        tried = all(failures >= STUCK_AFTER for failures in self._start_failures.values())
        return self._last_error if tried else None

    def fill(self, place: int) -> None:
        """Ask Ray for a worker."""
        generation = self._generation.get(place, -1) + 1
        self._generation[place] = generation
        worker_id = self._name(place, generation)
        layout = self._spec.layout
        options = WorkerActor.options(
            num_cpus=layout.cpus, num_gpus=layout.gpus, name=f"{self._spec.actor_prefix}{worker_id}"
        )
        handle = options.remote(worker_id, self._spec.build_engine)
        self._starting[worker_id] = handle
        self._spawn(self._bring_up(worker_id, place, handle))

    def worked(self, place: int) -> None:
        """Forget the failures of a place whose worker answered."""
        self._failures[place] = 0

    def fail(self, place: int) -> float:
        """Start another worker after a pause that grows with the failures since one of this place worked.

        Returns:
            The pause in seconds.
        """
        self._failures[place] += 1
        seconds = back_off(self._failures[place], first_s=RETRY_FIRST_S, most_s=RETRY_MOST_S)
        self._spawn(self._fill_later(place, seconds))
        return seconds

    def refuse(self, member: Member, reason: str) -> None:
        """Take note that a worker of this kind can never run the plan."""
        ray.kill(member.handle)
        self._fail_to_start(member.worker_id, member.place, reason, is_unusable=True)

    async def tell_who_waits(self) -> None:
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
                seconds = min(2 * seconds, NOTICE_MOST_S)

    def _name(self, place: int, generation: int) -> str:
        life = self._spec.life
        if life == generation == 0:
            return f"worker-{place}"
        return f"worker-{place}.{generation}" if life == 0 else f"worker-{place}.{life}.{generation}"

    async def _bring_up(self, worker_id: str, place: int, handle: Any) -> None:
        try:
            info = await wait_for(
                handle.describe.remote(),
                seconds=WORKER_START_SECONDS,
                awaited=f"{worker_id} to start",
            )
        except ClusterWaitError as error:
            ray.kill(handle)
            self._fail_to_start(worker_id, place, str(error))
        except RayError as error:
            # An error of our own kind is one of settings, weights or device, raised by `describe`.
            unusable = isinstance(error, TtsVarError)
            self._fail_to_start(worker_id, place, reason_of(error), is_unusable=unusable)
            if unusable:
                ray.kill(handle)
        else:
            del self._starting[worker_id]
            self._start_failures[place] = 0
            self._on_up(Member(worker_id=worker_id, place=place, handle=handle, info=info))

    def _fail_to_start(self, worker_id: str, place: int, reason: str, *, is_unusable: bool = False) -> None:
        self._starting.pop(worker_id, None)
        if is_unusable:
            self.unusable = f"{worker_id} cannot be built: {reason}"
        self._last_error = reason
        self._start_failures[place] += 1
        failures = self._start_failures[place]
        seconds = self.fail(place)
        if failures <= STUCK_AFTER or failures.bit_count() == 1:
            self._notice(f"{worker_id} failed to start: {reason}; another try in {seconds:g} s")

    async def _fill_later(self, place: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.fill(place)
