"""The driver's side of the cells: starts them, hears from them, buries them, starts them anew.

    start --> waiting for its update --update--> told to the run --> waiting ...
      ^             | dies, breaks, or says nothing for too long
      '--back off---'   a few times in a row, then the others go on without it

A cell is known to the run by the id of one life; every life has a new one. What a dead life had is the
ledger's to lease again.
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
from ttsvar_ray.cluster.cell_messages import CellInfo, CellSpec, CellUpdate
from ttsvar_ray.cluster.pace import back_off
from ttsvar_ray.cluster.waiting import ClusterWaitError, get, reason_of, timeout_message
from ttsvar_ray.types import Prompt

logger = logging.getLogger(__name__)

POLL_S = 1.0
"""Longest time until a cell that has no news says so."""

START_TIMEOUT_S = 900.0
"""Until a cell's first word: its process starts, and imports, on a node that may be busy."""
SILENCE_TIMEOUT_S = 120.0
GET_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0

MAX_FAILURES = 5
"""Deaths in a row, without a finished prompt between them, after which a cell is given up."""
RESTART_FIRST_S = 1.0
RESTART_MOST_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellLost:
    """A life of a cell is over.

    Attributes:
        reason: why, for people.
        comes_back: whether another life is begun.
    """

    reason: str
    comes_back: bool


CellNews: TypeAlias = tuple[str, CellUpdate | CellLost]
"""A cell id, and what is new of it."""


@dataclass(slots=True)
class _Life:
    """One life of a cell.

    Attributes:
        update: its next update.
        asked_at, patience_s: when that was asked for, and how long it may take.
        calls: calls whose answers nobody needs, but whose errors somebody must see.
    """

    index: int
    cell_id: str
    actor: Any
    update: Any
    asked_at: float
    patience_s: float
    started: Any
    calls: list[Any] = field(default_factory=list)
    workers: int = 0
    stuck: str | None = None


@dataclass(slots=True)
class _Place:
    """One cell over all its lives; `due_at` is when the next one begins."""

    lives: int = 0
    failures: int = 0
    due_at: float | None = 0.0
    life: _Life | None = None


class Cells:
    """All cells of a run."""

    def __init__(self, make_spec: Callable[[int, int], CellSpec], count: int, *, scheduling: Any) -> None:
        """Start none yet.

        Args:
            make_spec: the specification of a cell by its index and its life, both from 0.
            count: cells, at least 1.
            scheduling: Ray's scheduling strategy for the cell actors.
        """
        self._make_spec = make_spec
        self._scheduling = scheduling
        self._places = [_Place() for _ in range(count)]
        self._given_up = ""

    @property
    def updates(self) -> list[Any]:
        """References to wait for: each is ready when its cell has news, or is dead."""
        return [life.update for life in self._lives()]

    @property
    def num_workers(self) -> int:
        """Workers that are up."""
        return sum(life.workers for life in self._lives())

    @property
    def hopeless(self) -> str | None:
        """Why no cell can go on, or None."""
        lives = self._lives()
        if not lives and all(place.due_at is None for place in self._places):
            return f"the last coordinator is given up: {self._given_up}"
        stuck = [life.stuck for life in lives if life.stuck is not None]
        expected = sum(place.life is not None or place.due_at is not None for place in self._places)
        if stuck and len(stuck) == expected and not self.num_workers:
            return f"no worker could be started; the last error was: {stuck[0]}"
        return None

    def start_due(self, now: float) -> None:
        """Begin the lives that are due."""
        for index, place in enumerate(self._places):
            if place.life is None and place.due_at is not None and place.due_at <= now:
                place.life = self._begin(index, place, now)

    def news(self, ready: Collection[Any], now: float) -> list[CellNews]:
        """Return what is new, and ask again.

        Args:
            ready: those of `updates` that are ready.
            now: seconds of a clock that does not jump.
        """
        news: list[CellNews] = []
        for life in self._lives():
            update, trouble = self._hear(life, life.update in ready, now)
            if update is not None:
                news.append((life.cell_id, update))
            if trouble is not None:
                news.append((life.cell_id, self._bury(life, trouble, now)))
        return news

    def lease(self, cell_id: str, prompts: Sequence[Prompt], is_last: bool) -> None:
        """Hand prompts to a cell; one that is gone gets nothing, and its rows come back as all of its do."""
        for life in self._lives():
            if life.cell_id == cell_id:
                life.calls.append(life.actor.lease.remote(prompts, is_last))

    def withdraw(self, cell_id: str, prompt_keys: Sequence[str]) -> None:
        """Tell a cell to drop prompts that were finished elsewhere."""
        for life in self._lives():
            if life.cell_id == cell_id:
                life.calls.append(life.actor.withdraw.remote(prompt_keys))

    def stop(self, *, in_order: bool) -> None:
        """End all cells.

        Args:
            in_order: ask them to kill their workers first, which frees the places at once; else the
                workers follow their owners when Ray sees to it.
        """
        lives = self._lives()
        if in_order:
            stops = [life.actor.stop.remote() for life in lives]
            with contextlib.suppress(RayError):
                ray.wait(stops, num_returns=len(stops), timeout=STOP_TIMEOUT_S) if stops else None
        for life in lives:
            ray.kill(life.actor)
        for place in self._places:
            place.life, place.due_at = None, None

    def _lives(self) -> list[_Life]:
        return [place.life for place in self._places if place.life is not None]

    def _begin(self, index: int, place: _Place, now: float) -> _Life:
        spec = self._make_spec(index, place.lives)
        place.lives += 1
        options = CellActor.options(
            scheduling_strategy=self._scheduling, name=f"{spec.actor_prefix}{spec.cell_id}"
        )
        actor: Any = options.remote(spec)
        started = actor.start.remote()
        return _Life(
            index=index,
            cell_id=spec.cell_id,
            actor=actor,
            started=started,
            update=actor.next_update.remote(POLL_S),
            asked_at=now,
            patience_s=START_TIMEOUT_S,
        )

    def _hear(self, life: _Life, is_ready: bool, now: float) -> tuple[CellUpdate | None, str | None]:
        """Return a cell's update, if there is one, and why it must be buried, if it must."""
        try:
            self._check_calls(life)
            if not is_ready:
                silent = now - life.asked_at > life.patience_s
                return None, timeout_message(life.patience_s, f"{life.cell_id} to report") if silent else None
            update: CellUpdate = get(life.update, seconds=GET_TIMEOUT_S, awaited=f"news of {life.cell_id}")
        except (RayError, ClusterWaitError) as error:
            return None, reason_of(error)
        life.workers, life.stuck = update.workers, update.stuck
        if update.outcomes:
            self._places[life.index].failures = 0
        if update.broken is None:
            life.update = life.actor.next_update.remote(POLL_S)
            life.asked_at, life.patience_s = now, SILENCE_TIMEOUT_S
        return update, update.broken

    def _check_calls(self, life: _Life) -> None:
        """Raise the errors of calls whose answers nobody needs."""
        if life.started is not None:
            done, _ = ray.wait([life.started], timeout=0)
            if done:
                info: CellInfo = get(life.started, seconds=GET_TIMEOUT_S, awaited=life.cell_id)
                logger.info("%s is up on %s (process %d)", info.cell_id, info.node_ip, info.pid)
                life.started = None
        if life.calls:
            done, life.calls = ray.wait(life.calls, num_returns=len(life.calls), timeout=0)
            for call in done:
                get(call, seconds=GET_TIMEOUT_S, awaited=f"an answer of {life.cell_id}")

    def _bury(self, life: _Life, reason: str, now: float) -> CellLost:
        ray.kill(life.actor)
        place = self._places[life.index]
        place.life = None
        place.failures += 1
        if place.failures > MAX_FAILURES:
            place.due_at = None
            self._given_up = reason
            return CellLost(reason=reason, comes_back=False)
        place.due_at = now + back_off(place.failures, first_s=RESTART_FIRST_S, most_s=RESTART_MOST_S)
        return CellLost(reason=reason, comes_back=True)
