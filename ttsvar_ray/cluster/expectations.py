"""What a run's coordinators may expect of its workers: counted costs on the device that the cluster has."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ttsvar_ray.cluster.resources import WorkerLayout
from ttsvar_ray.config.sections import JobConfig
from ttsvar_ray.coordination.workload import Workload
from ttsvar_ray.costs.profile import device_names, load_profile
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.workload import build_workload
from ttsvar_ray.search.plan import Plan

logger = logging.getLogger(__name__)

ACCELERATOR_TYPE = "accelerator_type:"
"""Begins the name of the resource by which Ray says what kind of GPU a node has."""

USUAL_GPU = "h100"
"""Rates for a GPU of a kind that has no profile: proportions between segments matter, and are corrected by
what is observed; bytes do not depend on it."""


def expected_workload(
    config: JobConfig, plan: Plan, layout: WorkerLayout, resources: Mapping[str, float]
) -> Workload | None:
    """Return what the segments of a plan cost on this cluster's workers, or None where nobody has counted.

    Args:
        config: the job.
        plan: of the job.
        layout: its workers.
        resources: Ray's totals of the cluster.
    """
    try:
        return build_workload(config, plan, load_profile(profile_name(layout, resources)))
    except ConfigurationError as error:
        logger.info("work is placed by rows alone: %s", error)
        return None


def profile_name(layout: WorkerLayout, resources: Mapping[str, float]) -> str:
    """Return the profile of the workers' device."""
    if not layout.gpus:
        return "cpu"
    kinds = [name.removeprefix(ACCELERATOR_TYPE) for name in resources if name.startswith(ACCELERATOR_TYPE)]
    names = device_names()
    known = [
        name
        for kind in sorted(kinds)
        for name in names
        if name == kind.lower() or name.startswith(f"{kind.lower()}-")
    ]
    return known[0] if known else USUAL_GPU
