"""What a driver needs of a job: made of a resolved one, or by hand for models and rewards of one's own."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.coordination.settings import Workload
from ttsvar_ray.costs.model import JobNetworks
from ttsvar_ray.costs.plan_cost import image_costs
from ttsvar_ray.costs.profile import DeviceProfile
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.footprint import has_counted_costs, job_networks
from ttsvar_ray.job.plan import rows_of
from ttsvar_ray.job.preflight import check_memory, expected_image_bytes, images_kept, trace_bytes
from ttsvar_ray.job.resolved import ResolvedJob, model_choice, plan_note, resolve
from ttsvar_ray.job.sizing import sized
from ttsvar_ray.job.weights import fingerprints, pin_weights, with_absolute_inputs
from ttsvar_ray.job.workload import expected_workload
from ttsvar_ray.models.registry import fetch_model
from ttsvar_ray.search.plan import Plan

if TYPE_CHECKING:
    from ttsvar_ray.engine.engine import Engine
    from ttsvar_ray.rewards.protocol import RewardEnsemble


@dataclass(frozen=True, slots=True, kw_only=True)
class JobParts:
    """What a job runs.

    Attributes:
        build_engine: builds the engine in a worker's process; travels by pickle, so it holds settings, not
            weights. Of a job made by hand, `run.json` has its import path as the model's name.
        build_rewards: builds its rewards alone, in a process of their own; None where they cannot be had so.
        build_engine_around: builds an engine whose rewards are made by the function that it is given, when
            all else is loaded; None likewise.
        networks: what they cost, None where that is unknown; counting takes a second or two.
        rows: most trajectories of a micro-batch on a device, by segment of the plan.
        expect: what the plan costs on a device, if that is known.
        fingerprints: what tells the job's code and weights from others, by a name for each.
        check_memory: raises `ConfigurationError` where a GPU is too small.
        image_bytes: about what one image takes on disk; None where nobody knows.
        note: what somebody should know of the plan.
    """

    plan: Plan
    build_engine: Callable[[], Engine]
    build_rewards: Callable[[], RewardEnsemble] | None = None
    build_engine_around: Callable[[Callable[[], RewardEnsemble]], Engine] | None = None
    networks: Callable[[], JobNetworks | None] = lambda: None
    rows: Callable[[DeviceProfile], tuple[int, ...]] = lambda device: ()
    expect: Callable[[DeviceProfile], Workload | None] = lambda device: None
    fingerprints: Callable[[], dict[str, str]] = dict
    fetch: Callable[[], None] = lambda: None
    check_memory: Callable[[DeviceProfile], None] = lambda device: None
    image_bytes: int | None = None
    note: str = ""

    def by_hand(self) -> dict[str, str]:
        """Return what tells a job made by hand from others, in place of the settings that it does not use."""
        built: Any = self.build_engine
        named = built.func if isinstance(built, partial) else built
        named = named if hasattr(named, "__qualname__") else type(named)
        path = f"{named.__module__}:{named.__qualname__}"
        plan = hashlib.sha256(repr(self.plan).encode()).hexdigest()[:12]
        found = {"model.name": path, "strategy.name": self.plan.strategy, "strategy.plan": plan}
        with contextlib.suppress(TypeError, OSError):  # typed at a prompt
            found["code.engine"] = hashlib.sha256(Path(inspect.getfile(named)).read_bytes()).hexdigest()
        return found


def job_parts(job: ResolvedJob) -> JobParts:
    """Return what a driver needs of a job, with all weights at the commits they stand for now.

    Raises:
        CheckpointError: a repository whose commit cannot be found out.
    """
    pinned = pin_weights(job)
    image_bytes = expected_image_bytes(job.config, job.description)
    if job.config.output.trace == "bits":
        image_bytes += trace_bytes(job.description, job.plan) // images_kept(job.config, job.plan)
    on_workers = with_absolute_inputs(pinned.config)
    return JobParts(
        plan=job.plan,
        build_engine=partial(_build_on_worker, on_workers, job.plan),
        build_rewards=partial(_build_rewards, on_workers, job.plan),
        build_engine_around=partial(_build_on_worker, on_workers, job.plan),
        networks=partial(_networks, job),
        rows=lambda device: rows_of(sized(job, device).config, job.plan),
        expect=lambda device: expected_workload(sized(job, device), device),
        fingerprints=partial(fingerprints, pinned),
        # Workers fetch for themselves too; here first, progress is shown to who started the job, and once.
        fetch=partial(fetch_model, model_choice(pinned.config)),
        check_memory=partial(check_memory, job),
        image_bytes=image_bytes,
        note=plan_note(job),
    )


def _networks(job: ResolvedJob) -> JobNetworks | None:
    """Return what the networks cost, None if unknown; FLOPs are the same in any number format."""
    if not has_counted_costs(job.description):
        return None
    try:
        return job_networks(job.config, job.description, job.plan, on_gpu=False)
    except ConfigurationError:
        return None


def counted_costs(job: ResolvedJob) -> tuple[float, ...]:
    """Return `costs.plan_cost.image_costs` of a job; empty if unknown."""
    networks, size = _networks(job), job.config.engine.selector_decode
    return () if networks is None else image_costs(job.plan, networks, selector_decode=size)


def _build_on_worker(
    config: JobConfig, plan: Plan, rewards: Callable[[], RewardEnsemble] | None = None
) -> Engine:
    """Build an engine where the model's files may lie elsewhere than on the driver's machine."""
    from ttsvar_ray.job.build import build_engine

    return build_engine(dataclasses.replace(resolve(config), plan=plan), rewards=rewards)


def _build_rewards(config: JobConfig, plan: Plan) -> RewardEnsemble:
    """Build a job's rewards in a process that has nothing else, on its GPU where it was given one."""
    from ttsvar_ray.job.build import build_verifier

    return build_verifier(dataclasses.replace(resolve(config), plan=plan))
