"""What the driver and a cell tell each other. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from ttsvar_ray.cluster.resources import WorkerLayout
from ttsvar_ray.cluster.worker import EngineBuilder, WorkerInfo
from ttsvar_ray.coordination.settings import CoordinatorSettings
from ttsvar_ray.coordination.workload import Workload
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.search.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSpec:
    """What one cell runs.

    Attributes:
        cell_id: unique in a run, over all lives of its cells.
        life: how often this cell was started before; 0 at first.
        plan, run_seed, settings, workload: the coordinator's.
        build_engine: how a worker makes its engine.
        layout: how many workers this cell has, and their resources.
        first_place: number of its first worker among those of the run.
        actor_prefix: begins the names of its workers among the actors of the cluster.
    """

    cell_id: str
    life: int = 0
    plan: Plan
    run_seed: int
    settings: CoordinatorSettings
    workload: Workload | None = None
    build_engine: EngineBuilder
    layout: WorkerLayout
    first_place: int = 0
    actor_prefix: str

    @property
    def places(self) -> range:
        """Numbers of its workers among those of the run."""
        return range(self.first_place, self.first_place + self.layout.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellUpdate:
    """News since the last update.

    Attributes:
        outcomes: finished prompts, in the order they finished.
        lease_requests: one count per `LeasePrompts`; each wants one answer.
        notices: what a person should know, one line each.
        workers: workers that are up.
        joined: workers that came up.
        unusable: why no engine can be built here from the settings, weights or device; None if none was
            tried in vain.
        stuck: the last error, where no worker is up and every place has failed several times in a row.
        broken: why the cell itself cannot go on and must be started anew.
    """

    outcomes: tuple[PromptResult | PromptFailure, ...] = ()
    lease_requests: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()
    workers: int = 0
    joined: tuple[WorkerInfo, ...] = ()
    unusable: str | None = None
    stuck: str | None = None
    broken: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellInfo:
    """Where a cell runs."""

    cell_id: str
    node_ip: str
    pid: int
