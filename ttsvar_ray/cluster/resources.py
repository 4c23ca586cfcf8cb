"""What the cluster has, how many workers that makes, what it is asked to grow to, and which nodes will go."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayError

from ttsvar_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from ttsvar_ray.job.preflight import Device

logger = logging.getLogger(__name__)

DRAIN_QUERY_SECONDS = 5.0

ACCELERATOR_TYPE = "accelerator_type:"
"""Begins the name of the resource by which Ray says what kind of GPU a node has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLayout:
    """How many workers, and what each one asks of the cluster."""

    count: int
    cpus: float
    gpus: float


def describe_resources(resources: Mapping[str, float]) -> str:
    """Return "2 CPUs, 1 GPU" for people."""
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    return f"{cpus:g} CPU{'s' * (cpus != 1)}, {gpus:g} GPU{'s' * (gpus != 1)}"


def describe_cluster() -> str:
    """Return what the connected cluster has and what of it is free, in one line."""
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    total = describe_resources(ray.cluster_resources())
    free = describe_resources(ray.available_resources())
    return f"{nodes} node{'s' * (nodes != 1)} with {total}; free: {free}"


def lay_out_workers(
    resources: Mapping[str, float],
    *,
    device: str,
    workers: int | None,
    cpus_per_worker: float | None,
    gpus_per_worker: float | None,
    threads: int,
) -> WorkerLayout:
    """Decide how many workers to start.

    Args:
        resources: Ray's totals of the cluster ("CPU", "GPU").
        device: "auto", "cpu" or a GPU device name.
        workers: the caller's number, or None for as many as fit.
        cpus_per_worker: None is the engine's threads on a CPU, one beside a GPU.
        gpus_per_worker: None is one on a GPU, none on a CPU.
        threads: CPU threads of one engine.

    Returns:
        The layout. More workers than fit now may be asked for by number: the rest start when nodes join.

    Raises:
        ConfigurationError: GPUs are asked for where there are none, or not even one worker fits.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    asks = gpus > 0 if gpus_per_worker is None else gpus_per_worker > 0
    on_gpu = asks if device == "auto" else device != "cpu"
    if device == "cpu" and gpus_per_worker:
        raise ConfigurationError(
            f"cluster.gpus_per_worker: expected none with model.device cpu, got {gpus_per_worker:g}; "
            "remove it, or set model.device to cuda"
        )
    gpus_each = (1.0 if gpus_per_worker is None else gpus_per_worker) if on_gpu else 0.0
    if on_gpu and gpus_each == 0:
        raise ConfigurationError(
            f"cluster.gpus_per_worker: expected more than 0 with model.device {device}, got 0; "
            "0.5 lets two workers share a GPU"
        )
    cpus_each = (1.0 if on_gpu else float(threads)) if cpus_per_worker is None else cpus_per_worker
    limits = [total / each for total, each in ((cpus, cpus_each), (gpus, gpus_each)) if each > 0]
    if not limits and workers is None:
        raise ConfigurationError(
            "cluster.workers: expected a number, because workers that ask for no CPU and no GPU fit any "
            "number of times; got none"
        )
    if workers is None:
        workers = int(min(limits) + 1e-9)
        if workers < 1:
            asked = describe_resources({"CPU": cpus_each, "GPU": gpus_each})
            raise ConfigurationError(
                f"cluster: expected room for at least one worker of {asked}, got a cluster with "
                f"{describe_resources(resources)}; lower cluster.cpus_per_worker or gpus_per_worker, use "
                "another model.device, or set cluster.workers to wait for nodes that will join"
            )
    return WorkerLayout(count=workers, cpus=cpus_each, gpus=gpus_each)


def device_of(layout: WorkerLayout, resources: Mapping[str, float]) -> Device:
    """Return the workers' devices, as far as Ray's totals of the cluster tell them."""
    # Every cell and every worker imports this file; what costs are known of is asked by the driver alone.
    from ttsvar_ray.costs.profile import device_names, load_profile
    from ttsvar_ray.job.preflight import USUAL_GPU, Device

    if not layout.gpus:
        return Device(profile="cpu", title="CPU", count=layout.count)
    names = sorted(name for name in resources if name.startswith(ACCELERATOR_TYPE))
    kinds = [name.removeprefix(ACCELERATOR_TYPE).lower() for name in names]
    named = device_names()
    known = [name for kind in kinds for name in named if name == kind or name.startswith(f"{kind}-")]
    profile = load_profile(known[0] if known else USUAL_GPU)
    return Device(
        profile=profile.name,
        title=profile.title if known else f"a GPU of unknown kind, with the rates of {profile.name}",
        count=layout.count,
        memory_bytes=profile.memory_bytes * min(1.0, layout.gpus) if known else None,
    )


def divide_workers(workers: int, per_cell: int) -> list[range]:
    """Return the numbers of the workers of each cell: as few cells as that makes, as even as can be.

    Args:
        workers: of the run, at least 1.
        per_cell: most of one cell, at least 1.
    """
    cells = -(-workers // per_cell)
    starts = [index * workers // cells for index in range(cells + 1)]
    return [range(first, last) for first, last in itertools.pairwise(starts)]


def bundles(layout: WorkerLayout) -> list[dict[str, float]]:
    """Return the resources of all workers, as the autoscaler wants them: one bundle a worker."""
    each = {name: amount for name, amount in (("CPU", layout.cpus), ("GPU", layout.gpus)) if amount}
    return [dict(each) for _ in range(layout.count)] if each else []


def fits(layout: WorkerLayout, resources: Mapping[str, float]) -> bool:
    """Return whether a cluster of these totals has room for all workers."""
    needed = {"CPU": layout.count * layout.cpus, "GPU": layout.count * layout.gpus}
    return all(resources.get(name, 0.0) >= amount for name, amount in needed.items())


@contextlib.contextmanager
def demanded(
    layout: WorkerLayout, resources: Mapping[str, float], *, beside: WorkerLayout | None = None
) -> Iterator[None]:
    """Ask the autoscaler for room for all workers while the block runs, where there is too little now.

    Workers that fit nowhere wait in Ray's queue, which an autoscaler sees, too; the request also keeps it
    from taking idle nodes away between two prompts. Without an autoscaler it changes nothing. There is one
    such request in a cluster: a job that needs no more than there is leaves it alone.

    Args:
        beside: actors that the cluster has room for already, and must keep.
    """
    others = [] if beside is None else bundles(beside)
    if fits(layout, resources) or not _request(bundles(layout) + others):
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


class DrainWatch:
    """Asks the cluster which nodes are being drained.

    Ray says so only through a client that is not part of its public interface: where that is missing, a
    run goes on without, and a node that goes is a node that is lost.
    """

    def __init__(self, address: str) -> None:
        """Connect.

        Args:
            address: of the cluster's control store, host:port.
        """
        self.unavailable: str | None = None
        self._client = None
        try:
            from ray._raylet import GcsClient  # type: ignore[attr-defined]

            client = GcsClient(address=address)
            _ = client.get_draining_nodes
        except (ImportError, AttributeError, TypeError, RayError) as error:
            self.unavailable = (
                f"this version of Ray does not say which nodes are drained ({type(error).__name__}: "
                f"{error}); work on a node that is taken away is lost and run again"
            )
        else:
            self._client = client

    def poll(self) -> dict[str, float]:
        """Return the seconds left of each node that is being drained, by id; blocks for a round trip.

        A deadline that nobody set is infinite. No answer is no news: the control store may be busy.
        """
        if self._client is None:
            return {}
        try:
            deadlines = self._client.get_draining_nodes(timeout=DRAIN_QUERY_SECONDS)
        except (RayError, OSError, RuntimeError):
            return {}
        now_ms = time.time() * 1000
        return {
            node if isinstance(node, str) else node.hex(): _seconds_left(deadline, now_ms)
            for node, deadline in deadlines.items()
        }


def _seconds_left(deadline_ms: int, now_ms: float) -> float:
    # Ray's "no deadline" is 0 or the largest integer, by version.
    if deadline_ms <= 0 or deadline_ms >= 2**62:
        return float("inf")
    return max(0.0, (deadline_ms - now_ms) / 1000)
