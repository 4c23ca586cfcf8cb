"""The driver's side of the cells: starts them, hears from them, ends them, starts them anew.

    start --> waiting for its update --update--> told to the run --> waiting ...
      ^             | dies, breaks, or says nothing for too long
      '--back off---'   a few times in a row, then the others go on without it

A cell is known to the run by the id of one incarnation; every incarnation has a new one. What a dead one had
is the ledger's to lease again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import ray
from ray.exceptions import RayError

from ttsvar_ray.cluster.cell import CellActor
from ttsvar_ray.cluster.cell_messages import CellInfo, CellSpec, CellState, CellUpdate
from ttsvar_ray.cluster.failures import RestartPolicy
from ttsvar_ray.cluster.waiting import ClusterWaitError, get, reason_of, timeout_message
from ttsvar_ray.cluster.worker_pool import first_workers
from ttsvar_ray.types import Prompt

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Longest time until a cell that has no news says so."""

START_TIMEOUT_SECONDS = 900.0
"""Until a cell's first word: its process starts, and imports, on a node that may be busy."""
SILENCE_TIMEOUT_SECONDS = 120.0
GET_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 5.0

MAX_FAILURES = 5
"""Deaths in a row, without a finished prompt between them, after which a cell is given up."""
RESTART_FIRST_SECONDS = 1.0
RESTART_MOST_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellLost:
    """An incarnation of a cell is over.

    Attributes:
        reason: why, for people.
        comes_back: whether another one is begun.
    """

    reason: str
    comes_back: bool


CellNews: TypeAlias = tuple[str, CellUpdate | CellLost]
"""A cell id, and what is new of it."""


@dataclass(slots=True, kw_only=True)
class _Incarnation:
    """One incarnation of a cell.

    Attributes:
        asked_at, patience_seconds: when that was asked for, and how long it may take.
        first_workers: those that were started with it, and end with it.
        calls: calls whose answers nobody needs, but whose errors somebody must see.
    """

    cell_id: str
    actor: Any
    first_workers: list[Any]
    update: Any
    asked_at: float
    patience_seconds: float
    started: Any
    calls: list[Any] = field(default_factory=list)
    workers: int = 0

    def kill(self) -> None:
        """End it, and the workers that are this process's."""
        for actor in (self.actor, *self.first_workers):
            ray.kill(actor)


@dataclass(slots=True, kw_only=True)
class _Cell:
    """One cell over all its incarnations.

    Attributes:
        restarts: after failures in a row since it finished a prompt.
        state, reason: how it is doing, and why.
        due_at: when a cell that is pending is started.
        incarnations: so far.
        now: the one that lives.
    """

    index: int
    restarts: RestartPolicy
    state: CellState = CellState.PENDING
    reason: str = ""
    due_at: float = 0.0
    incarnations: int = 0
    now: _Incarnation | None = None


class Cells:
    """All cells of a run."""

    def __init__(self, make_spec: Callable[[int, int], CellSpec], count: int, *, scheduling: Any) -> None:
        """Start none yet.

        Args:
            make_spec: the specification of a cell by its index and its incarnation, both from 0.
            count: cells, at least 1.
            scheduling: Ray's scheduling strategy for the cell actors.
        """
        self._make_spec = make_spec
        self._scheduling = scheduling
        self._given_up = ""
        self._cells = [
            _Cell(
                index=index,
                restarts=RestartPolicy(
                    name=f"cell-{index}",
                    first_seconds=RESTART_FIRST_SECONDS,
                    most_seconds=RESTART_MOST_SECONDS,
                    most_failures=MAX_FAILURES,
                ),
            )
            for index in range(count)
        ]

    @property
    def updates(self) -> list[Any]:
        """References to wait for: each is ready when its cell has news, or is dead."""
        return [live.update for live in self._live()]

    @property
    def num_workers(self) -> int:
        """Workers that are up."""
        return sum(live.workers for live in self._live())

    @property
    def failure(self) -> str | None:
        """Why no cell can go on, or None."""
        going = [cell for cell in self._cells if cell.state is not CellState.GIVEN_UP]
        if not going:
            return f"the last coordinator is given up: {self._given_up}"
        if all(cell.state is CellState.STUCK for cell in going):
            return f"no worker could be started; the last error was: {going[0].reason}"
        return None

    def start_due(self, now: float) -> None:
        """Start the cells that are due."""
        for cell in self._cells:
            if cell.state is CellState.PENDING and cell.due_at <= now:
                cell.now, cell.state = self._start(cell, now), CellState.STARTING

    def news(self, ready: Collection[Any], now: float) -> list[CellNews]:
        """Return what is new, and ask again.

        Args:
            ready: those of `updates` that are ready.
            now: seconds of a clock that does not jump.
        """
        news: list[CellNews] = []
        for cell in self._cells:
            if cell.now is None:
                continue
            live = cell.now
            update, trouble = self._hear(cell, live, live.update in ready, now)
            if update is not None:
                news.append((live.cell_id, update))
            if trouble is not None:
                news.append((live.cell_id, self._end(cell, live, trouble, now)))
        return news

    def lease(self, cell_id: str, prompts: Sequence[Prompt], is_last: bool) -> None:
        """Hand prompts to a cell; one that is gone gets nothing, and its rows come back as all of its do."""
        for live in self._live():
            if live.cell_id == cell_id:
                live.calls.append(live.actor.lease.remote(prompts, is_last))

    def withdraw(self, cell_id: str, prompt_keys: Sequence[str]) -> None:
        """Tell a cell to drop prompts that were finished elsewhere."""
        for live in self._live():
            if live.cell_id == cell_id:
                live.calls.append(live.actor.withdraw.remote(prompt_keys))

    def stop(self, *, in_order: bool) -> None:
        """End all cells.

        Args:
            in_order: ask them to kill their workers first, which frees their resources at once; else those
                that they started themselves follow when Ray sees to it.
        """
        lives = self._live()
        if in_order:
            stops = [live.actor.stop.remote() for live in lives]
            with contextlib.suppress(RayError):
                ray.wait(stops, num_returns=len(stops), timeout=STOP_TIMEOUT_SECONDS) if stops else None
        for live in lives:
            live.kill()
        for cell in self._cells:
            cell.now, cell.state = None, CellState.GIVEN_UP

    def _live(self) -> list[_Incarnation]:
        return [cell.now for cell in self._cells if cell.now is not None]

    def _start(self, cell: _Cell, now: float) -> _Incarnation:
        spec = self._make_spec(cell.index, cell.incarnations)
        cell.incarnations += 1
        options = CellActor.options(
            scheduling_strategy=self._scheduling, name=f"{spec.actor_prefix}{spec.cell_id}"
        )
        actor: Any = options.remote(spec)
        # A worker takes longer to start than a cell does: neither waits for the other.
        workers = first_workers(spec)
        started = actor.start.remote(workers)
        return _Incarnation(
            cell_id=spec.cell_id,
            actor=actor,
            first_workers=list(workers.values()),
            started=started,
            update=actor.next_update.remote(POLL_SECONDS),
            asked_at=now,
            patience_seconds=START_TIMEOUT_SECONDS,
        )

    def _hear(
        self, cell: _Cell, live: _Incarnation, is_ready: bool, now: float
    ) -> tuple[CellUpdate | None, str | None]:
        """Return a cell's update, if there is one, and why it must be ended, if it must."""
        try:
            self._check_calls(live)
            if not is_ready:
                if now - live.asked_at <= live.patience_seconds:
                    return None, None
                return None, timeout_message(live.patience_seconds, f"{live.cell_id} to report")
            update: CellUpdate = get(
                live.update, seconds=GET_TIMEOUT_SECONDS, awaited=f"news of {live.cell_id}"
            )
        except (RayError, ClusterWaitError) as error:
            return None, reason_of(error)
        live.workers = update.workers
        cell.state, cell.reason = update.state, update.reason
        if update.outcomes:
            cell.restarts.worked()
        if update.state is CellState.BROKEN:
            return update, update.reason
        live.update = live.actor.next_update.remote(POLL_SECONDS)
        live.asked_at, live.patience_seconds = now, SILENCE_TIMEOUT_SECONDS
        return update, None

    def _check_calls(self, live: _Incarnation) -> None:
        """Raise the errors of calls whose answers nobody needs."""
        if live.started is not None:
            done, _ = ray.wait([live.started], timeout=0)
            if done:
                info: CellInfo = get(live.started, seconds=GET_TIMEOUT_SECONDS, awaited=live.cell_id)
                logger.info("%s is up on %s (process %d)", info.cell_id, info.node_ip, info.pid)
                live.started = None
        if live.calls:
            done, live.calls = ray.wait(live.calls, num_returns=len(live.calls), timeout=0)
            for call in done:
                get(call, seconds=GET_TIMEOUT_SECONDS, awaited=f"an answer of {live.cell_id}")

    def _end(self, cell: _Cell, live: _Incarnation, reason: str, now: float) -> CellLost:
        live.kill()
        cell.now, cell.reason = None, reason
        pause = cell.restarts.failed(reason)
        if pause is None:
            cell.state, self._given_up = CellState.GIVEN_UP, reason
        else:
            cell.state, cell.due_at = CellState.PENDING, now + pause
        return CellLost(reason=reason, comes_back=pause is not None)
