"""From a job's settings to what a simulation needs: plan, costs, limits of a worker, payload sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ttsvar_ray.config.calibrated import read_calibration
from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.coordination.settings import CoordinatorSettings, Workload
from ttsvar_ray.costs.profile import DeviceProfile, load_profile
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.plan import rows_of
from ttsvar_ray.job.preflight import expected_image_bytes
from ttsvar_ray.job.resolved import ResolvedJob, coordinator_settings, resolve
from ttsvar_ray.job.sizing import sized, sized_memory
from ttsvar_ray.job.workload import KIND, build_workload, read_workload
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.simulation.settings import PayloadSizes, SimulationSettings

FEATURE_DIM = 256
"""Numbers of one image's features: patches of a published extractor, reduced to one component."""

PATCH_WIDTH = 1024
"""Numbers of each patch, where it is the selection that reduces them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedJob:
    """A job as a simulation sees it."""

    plan: Plan
    workload: Workload
    coordinator: CoordinatorSettings
    settings: SimulationSettings


def simulated_job(config: JobConfig) -> SimulatedJob:
    """Read a job for the simulation that its section `simulation` describes.

    Raises:
        ConfigurationError: no such profile, costs that are not counted, weights that do not fit the device,
            or a workload of another plan.
        CheckpointError: a model directory that cannot be read.
    """
    job, given = resolve(config), config.simulation
    plan, description = job.plan, job.description
    memory_gb = config.engine.memory_gb
    memory_bytes = None if memory_gb is None else int(memory_gb * 1e9)
    if _is_workload_file(given.profile):
        workload = read_workload(Path(given.profile))
        if len(workload.segments) != len(plan.segments):
            raise ConfigurationError(
                f"{given.profile}: expected loads of the plan's {len(plan.segments)} segments, got "
                f"{len(workload.segments)}; it was measured for another plan"
            )
    else:
        device = load_profile(given.profile)
        job = sized(job, device)
        workload = build_workload(job, device)
        if device.is_gpu:
            left = _bytes_left(job, device)
            memory_bytes = left if memory_bytes is None else min(memory_bytes, left)
    fixed = job.pass_rows
    if fixed is not None:
        # A measured workload knows of no passes that are filled up.
        loads = zip(workload.segments, fixed, strict=True)
        workload = replace(workload, segments=tuple(replace(load, pass_rows=rows) for load, rows in loads))
    writer = given.writer_gb_per_second
    return SimulatedJob(
        plan=simulated_plan(job),
        workload=workload,
        coordinator=coordinator_settings(job.config),
        settings=SimulationSettings(
            **given.model_dump(
                exclude={"profile", "compare", "writer_gb_per_second", "abandoned", "satisfied"}
            ),
            rows=rows_of(job.config, plan),
            memory_bytes=memory_bytes,
            workers_per_cell=config.cluster.workers_per_cell,
            rows_per_part=config.output.rows_per_part,
            sink_bytes_per_second=math.inf if writer is None else writer * 1e9,
            payload=PayloadSizes(
                bits_per_token=description.bits_per_token,
                feature_dim=FEATURE_DIM if plan.joint_component is None else FEATURE_DIM * PATCH_WIDTH,
                image_bytes=expected_image_bytes(config, description),
            ),
        ),
    )


def simulated_plan(job: ResolvedJob) -> Plan:
    """Return a job's plan with thresholds that so many rounds miss or reach when rewards are even in [0, 1).

    How many do, the calibration knows whose thresholds the job has; else the settings of the simulation say.

    Raises:
        ConfigurationError: a calibration file that cannot be read.
    """
    plan, config = job.plan, job.config
    rounds, given = plan.rounds, config.simulation
    if rounds.stop_at is None:
        return plan
    path = config.strategy.calibration
    policy = None if path is None else read_calibration(path).policy_of(rounds)
    abandoned = dict.fromkeys((scale for scale, _ in rounds.reject_below), given.abandoned)
    satisfied = given.satisfied
    if policy is not None:
        abandoned = {int(scale): share for scale, share in policy.abandoned.items()}
        satisfied = policy.satisfied
    thresholds = tuple(
        (scale, abandoned[scale] ** (1 / plan.population_before[scale])) for scale, _ in rounds.reject_below
    )
    stop_at = (1 - satisfied) ** (1 / plan.survivors_after[-1])
    return replace(plan, rounds=replace(rounds, reject_below=thresholds, stop_at=stop_at))


def _is_workload_file(profile: str) -> bool:
    """Whether a profile is a workload's file; errors of reading are for whoever reads it in earnest."""
    try:
        content = json.loads(Path(profile).read_text(encoding="utf-8"))
        return isinstance(content, Mapping) and content.get("kind") == KIND
    except (OSError, ValueError):
        return False


def _bytes_left(job: ResolvedJob, device: DeviceProfile) -> int:
    memory = sized_memory(job, job_networks(job.config, job.description, job.plan, on_gpu=True))
    left = memory.room(device.memory_bytes)
    if left < 1:
        raise ConfigurationError(
            f"{device.title}: the weights take {memory.weight_bytes / 1e9:.1f} GB and leave nothing to "
            "trajectories; use a larger device or a smaller model"
        )
    return left
