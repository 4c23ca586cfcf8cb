"""What the driver and a cell tell each other. Values only."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ttsvar_ray.cluster.resources import WorkerLayout
from ttsvar_ray.cluster.worker import EngineBuilder, WorkerInfo
from ttsvar_ray.coordination.settings import CoordinatorSettings, Workload
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.search.plan import Plan


class CellState(str, enum.Enum):
    """How a cell is doing.

    PENDING    to be started, at once or after a pause
    STARTING   no worker is up, and may yet come
    RUNNING    a worker is up
    UNUSABLE   no worker was ever up, and one found that no engine can be built from the settings, weights or
               device; others may yet come
    STUCK      no worker is up, and several in a row of every number have failed to start
    BROKEN     its actor cannot go on and must be started anew
    GIVEN_UP   it failed too often in a row: nothing more comes of it
    """

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    UNUSABLE = "unusable"
    STUCK = "stuck"
    BROKEN = "broken"
    GIVEN_UP = "given up"


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSpec:
    """What one cell runs.

    Attributes:
        cell_id: unique in a run, over all incarnations of its cells.
        incarnation: how often this cell was started before; 0 at first.
        plan, run_seed, settings, workload: the coordinator's.
        build_engine: how a worker makes its engine.
        layout: how many workers this cell has, and their resources.
        first_worker: number of its first worker among those of the run.
        actor_prefix: begins the names of its workers among the actors of the cluster.
    """

    cell_id: str
    incarnation: int = 0
    plan: Plan
    run_seed: int
    settings: CoordinatorSettings
    workload: Workload | None = None
    build_engine: EngineBuilder
    layout: WorkerLayout
    first_worker: int = 0
    actor_prefix: str

    @property
    def worker_numbers(self) -> range:
        """Numbers of its workers among those of the run."""
        return range(self.first_worker, self.first_worker + self.layout.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellUpdate:
    """News since the last update.

    Attributes:
        outcomes: finished prompts, in the order they finished.
        lease_requests: one count per `LeasePrompts`; each wants one answer.
        notices: what a person should know, one line each.
        workers: workers that are up.
        joined: workers that came up.
        reason: why it is unusable, stuck or broken.
    """

    outcomes: tuple[PromptResult | PromptFailure, ...] = ()
    lease_requests: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()
    workers: int = 0
    joined: tuple[WorkerInfo, ...] = ()
    state: CellState = CellState.STARTING
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellInfo:
    """Where a cell runs."""

    cell_id: str
    node_ip: str
    pid: int
