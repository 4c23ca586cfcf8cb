"""Telling a cluster that can grow what is missing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

from ray.exceptions import RayError

from ttsvar_ray.cluster.resources import WorkerLayout, describe_resources

logger = logging.getLogger(__name__)


def bundles(layout: WorkerLayout) -> list[dict[str, float]]:
    """Return the resources of all workers, as the autoscaler wants them: one bundle a worker."""
    each = {name: amount for name, amount in (("CPU", layout.cpus), ("GPU", layout.gpus)) if amount}
    return [dict(each) for _ in range(layout.count)] if each else []


def fits(layout: WorkerLayout, resources: Mapping[str, float]) -> bool:
    """Return whether a cluster of these totals has room for all workers."""
    needed = {"CPU": layout.count * layout.cpus, "GPU": layout.count * layout.gpus}
    return all(resources.get(name, 0.0) >= amount for name, amount in needed.items())


@contextlib.contextmanager
def demanded(layout: WorkerLayout, resources: Mapping[str, float]) -> Iterator[None]:
    """Ask the autoscaler for room for all workers while the block runs, where there is too little now.

    Workers that fit nowhere wait in Ray's queue, which an autoscaler sees, too; the request also keeps it
    from taking idle nodes away between two prompts. Without an autoscaler it changes nothing. There is one
    such request in a cluster: a job that needs no more than there is leaves it alone.
    """
    if fits(layout, resources) or not _request(bundles(layout)):
        yield
        return
    each = describe_resources({"CPU": layout.cpus, "GPU": layout.gpus})
    logger.info("asked the cluster to grow to %d workers of %s", layout.count, each)
    try:
        yield
    finally:
        _request([])


def _request(wanted: list[dict[str, float]]) -> bool:
    try:
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=wanted)
    except (ImportError, RayError, RuntimeError, AssertionError, TypeError, ValueError) as error:
        logger.warning("the autoscaler could not be asked for %d workers (%s)", len(wanted), error)
        return False
    return True
