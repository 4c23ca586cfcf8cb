"""Workers of a cell without Ray: the tiny engine behind calls that an event loop answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import ActorDiedError

from tests.support.tiny_engine import TinyEngineBuilder
from ttsvar_ray.cluster.worker import WorkerInfo
from ttsvar_ray.coordination.messages import ShardTask

Fault = Callable[[str, int], "Exception | str | None"]
"""(worker id, number of its batch) -> what goes wrong: an error to raise, "hang", "wait" (for the gate of the
group), "wait and die", or nothing."""


@dataclass(slots=True)
class FakeMethod:
    """`handle.method`: `.remote(...)` returns awaitables, as many as `.options` asked for."""

    call: Callable[..., Awaitable[Any]]
    num_returns: int = 1

    def options(self, *, num_returns: int) -> FakeMethod:
        return FakeMethod(self.call, num_returns)

    def remote(self, *args: Any) -> Any:
        whole = _asked(self.call(*args))
        if self.num_returns == 1:
            return whole

        async def part(index: int) -> Any:
            return (await whole)[index]

        return [_asked(part(index)) for index in range(self.num_returns)]


def _asked(answer: Awaitable[Any]) -> asyncio.Future[Any]:
    """Return a future that nobody has to wait for, as a reference to a result of Ray's is."""
    future = asyncio.ensure_future(answer)
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


@dataclass(eq=False)
class FakeWorker:
    """The handle of one worker."""

    worker_id: str
    group: FakeGroup
    engine: Any
    batches: int = 0

    def __post_init__(self) -> None:
        self.describe = FakeMethod(self._describe)
        self.run_batch = FakeMethod(self._run_batch)
        self.release = FakeMethod(self._release)
        self.status = FakeMethod(self._status)
        self.turn = asyncio.Lock()
        self.death: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def _describe(self) -> WorkerInfo:
        error = self.group.start_fault(self.worker_id)
        if error == "hang":
            await self._die_waiting()
        if isinstance(error, Exception):
            raise error
        return WorkerInfo(
            worker_id=self.worker_id,
            rows=self.group.rows,
            memory_bytes=self.group.memory_bytes,
            model_name="tiny",
            device="CPU",
            reward_name="tiny-reward",
            node_ip="127.0.0.1",
            node_id=f"node-of-{self.worker_id}",
            pid=1,
        )

    async def _run_batch(self, batch_id: int, tasks: Sequence[ShardTask], images: int) -> Any:
        async with self.turn:
            self.batches += 1
            await asyncio.sleep(0)
            fault = self.group.fault(self.worker_id, self.batches)
            if fault == "hang":
                await self._die_waiting()
            if isinstance(fault, str):
                await self.group.gate.wait()
            if fault == "wait and die":
                raise ActorDiedError()
            if isinstance(fault, Exception):
                raise fault
            if self.death.done():
                raise ActorDiedError()
            results = self.engine.run_segment(tasks)
            return (results, *[None] * images) if images else results

    async def _release(self, prompt_key: str, attempt: int) -> None:
        async with self.turn:
            self.engine.release(prompt_key, attempt)

    async def _status(self) -> str:
        return f"micro-batch 7 since 9 s, {self.batches} done"

    async def _die_waiting(self) -> None:
        await self.death
        raise ActorDiedError()


class FakeGroup:
    """Stands in for the worker actor class and for `ray.kill`."""

    def __init__(
        self,
        *,
        rows: int = 8,
        memory_bytes: int | None = None,
        fault: Fault = lambda worker_id, batch: None,
        start_fault: Callable[[str], Exception | str | None] = lambda worker_id: None,
    ) -> None:
        """Make a group.

        Args:
            rows: of a micro-batch.
            memory_bytes: of a worker's device.
            fault: what goes wrong with a worker's n-th micro-batch, from 1.
            start_fault: what goes wrong when a worker starts.
        """
        self.rows = rows
        self.memory_bytes = memory_bytes
        self.fault = fault
        self.start_fault = start_fault
        self.started: list[str] = []
        self.killed: list[str] = []
        self.gate = asyncio.Event()

    def options(self, **_options: Any) -> FakeGroup:
        return self

    def remote(self, worker_id: str, build_engine: TinyEngineBuilder) -> FakeWorker:
        self.started.append(worker_id)
        return FakeWorker(worker_id=worker_id, group=self, engine=build_engine())

    def kill(self, worker: FakeWorker) -> None:
        """End a worker: what hangs in it fails."""
        self.killed.append(worker.worker_id)
        if not worker.death.done():
            worker.death.set_result(None)
