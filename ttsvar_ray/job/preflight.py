"""What a job is about to do, said before it starts: each fact as soon as it is known, the quick ones first.

A fact is a value; the command line puts it into words. What cannot work raises, before anything was started
or written.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from ttsvar_ray.config.job import JobConfig
from ttsvar_ray.config.values import FailureBudget
from ttsvar_ray.coordination.settings import Workload
from ttsvar_ray.costs.profile import DeviceProfile, device_names, load_profile
from ttsvar_ray.errors import ConfigurationError, OutputError
from ttsvar_ray.job.footprint import has_counted_costs, job_networks
from ttsvar_ray.job.plan import rows_of
from ttsvar_ray.job.resolved import ResolvedJob
from ttsvar_ray.job.sizing import sized, sized_memory
from ttsvar_ray.job.workload import expected_workload
from ttsvar_ray.models.description import ModelDescription
from ttsvar_ray.models.registry import BUILT_IN, published_names, resolve_device
from ttsvar_ray.prompts.read import PromptScan
from ttsvar_ray.search.plan import Plan
from ttsvar_ray.simulation.run import seconds_per_prompt
from ttsvar_ray.storage.location import Location, locate

IMAGE_BYTES_PER_PIXEL = {"png": 1.5, "webp": 0.17, "jpeg": 0.25}
"""Measured on noisy images of a megapixel: PNG at level 6, WebP and JPEG at quality 95."""

TRACE_SHARE = 0.03
"""Of the bytes of the images: what the bits of the trace may take without being asked for."""

USUAL_GPU = "h100"
"""Rates for a GPU of a kind that has no profile: proportions between segments matter, and are corrected by
what is observed; bytes do not depend on it."""

LEAST_SHARE = 0.5
"""Of the expected bytes: calm images take about half of what noisy ones do. A job is refused where even that
is more than is free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFact:
    """Which job it is: what its settings say, before any file is read."""

    model: str
    strategy: str
    n: int
    seed: int
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsFact:
    """The prompt set, and how many of its lines may fail."""

    path: str
    scan: PromptScan
    max_failed: FailureBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFact:
    """What is done to each prompt, and what somebody should know of it."""

    plan: Plan
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFact:
    """Weights by part, each with what tells them from others; all were found."""

    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFact:
    """The output folder.

    Attributes:
        root: for people.
        parts_there, parts: committed, and of the whole run.
        prompts_left: that this session runs.
        images: that it keeps.
        image_bytes: of them, an estimate; None where the size of an image is not known.
        free_bytes: where they go; None of an object store.
    """

    root: str
    parts_there: int
    parts: int
    prompts_left: int
    images: int
    image_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeFact:
    """How long the prompts take on known devices.

    Attributes:
        seconds: of the session without its start; None where the costs are not counted.
        workers: that share the prompts.
        device: a worker's, for people.
        source: where the seconds come from.
        rows: most trajectories of a micro-batch on a GPU, by segment.
    """

    seconds: float | None
    workers: int
    device: str
    source: str = ""
    rows: tuple[int, ...] = ()


Fact: TypeAlias = JobFact | PromptsFact | PlanFact | WeightsFact | OutputFact | TimeFact


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A kind of device, as far as a job needs to know it.

    Attributes:
        profile: name of its rates.
        title: for people.
        memory_bytes: of one GPU; None of a CPU, and where nobody says.
        rates: measured on this machine; None: those of the profile.
    """

    profile: str
    title: str
    count: int
    memory_bytes: float | None = None
    rates: DeviceProfile | None = None

    @property
    def known(self) -> DeviceProfile:
        """Its rates, with the memory that it has."""
        rates = load_profile(self.profile) if self.rates is None else self.rates
        return rates if self.memory_bytes is None else replace(rates, memory_bytes=self.memory_bytes)


def expected_image_bytes(config: JobConfig, description: ModelDescription) -> int:
    """Return about how large one image file is, its bits included where they are kept."""
    pixels = description.image_height * description.image_width
    tokens = sum(height * width for height, width in description.scale_schedule)
    bits = tokens * description.bits_per_token // 8 if config.output.bits else 0
    return int(pixels * IMAGE_BYTES_PER_PIXEL[config.output.image_format]) + bits


def trace_bytes(description: ModelDescription, plan: Plan) -> int:
    """Return what the bits of all populations take that are selected from, of one prompt and all rounds."""
    tokens = itertools.accumulate(height * width for height, width in description.scale_schedule)
    each = [count * description.bits_per_token // 8 for count in tokens]
    rounds = [plan.of_round(index) for index in range(plan.rounds.most)]
    return sum(
        one.population_before[selection.scale_index] * each[selection.scale_index]
        for one in rounds
        for selection in one.selections
    )


def with_trace(config: JobConfig, description: ModelDescription | None, plan: Plan) -> JobConfig:
    """Return the settings with `output.trace` decided; without a description nobody knows what bits take."""
    if config.output.trace != "auto":
        return config
    is_small = False
    if description is not None:
        images = images_kept(config, plan) * expected_image_bytes(config, description)
        is_small = 0 < trace_bytes(description, plan) < TRACE_SHARE * images
    trace = "bits" if is_small else "selections"
    return config.model_copy(update={"output": config.output.model_copy(update={"trace": trace})})


def images_kept(config: JobConfig, plan: Plan) -> int:
    """Return the images kept of one prompt."""
    return plan.survivors_after[-1] if config.output.keep == "all" else 1


def free_bytes(root: Location) -> int | None:
    """Return the free bytes that this user has where a folder is, or will be; None where nobody counts them:
    in an object store, and in file systems of no size, such as /proc."""
    if root.local_path is None:
        return None
    folder = root.local_path
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else None


def check_space(fact: OutputFact) -> None:
    """Refuse what certainly does not fit.

    Raises:
        OutputError: even calm images would fill the disk.
    """
    if fact.image_bytes is None or fact.free_bytes is None:
        return
    if LEAST_SHARE * fact.image_bytes > fact.free_bytes:
        raise OutputError(
            f"{fact.root}: {fact.images:,} images take about {fact.image_bytes / 1e9:,.4g} GB, and "
            f"{fact.free_bytes / 1e9:,.4g} GB are free; choose another output.path (an object store), "
            "output.image_format webp or jpeg, or a part of the prompts (prompts.limit, cluster.shard)"
        )


def check_staging(root: Location, rows_per_part: int, image_bytes: int | None) -> None:
    """Refuse an object store whose parts do not fit where they are made.

    Raises:
        OutputError: less is free there than one part takes.
    """
    if root.local_path is not None or image_bytes is None:
        return
    folder = Path(tempfile.gettempdir())
    free, part = shutil.disk_usage(folder).free, rows_per_part * image_bytes
    if LEAST_SHARE * part > free:
        raise OutputError(
            f"{folder}: a part is made here before it goes to {root}, takes about {part / 1e9:,.1f} GB, and "
            f"{free / 1e9:,.1f} GB are free; set TMPDIR to another folder, or lower output.rows_per_part"
        )


def check_memory(job: ResolvedJob, device: DeviceProfile) -> None:
    """Refuse a GPU on which not even one trajectory of the job runs.

    Args:
        device: with the memory that a worker has.

    Raises:
        ConfigurationError: says what is taken, what there is, and what to change.
    """
    if not has_counted_costs(job.description):
        return
    job = sized(job, device)
    memory = sized_memory(job, job_networks(job.config, job.description, job.plan, on_gpu=True))
    misfit = memory.misfit(device.memory_bytes)
    if misfit is not None:
        passes = ", ".join(map(str, job.pass_rows or ()))
        full = f", in passes of {passes} rows (engine.micro_batch_rows)" if passes else ""
        raise ConfigurationError(
            f"memory: the job does not fit a GPU of {device.memory_bytes / 1e9:.0f} GB: {misfit}{full}; use "
            "a larger GPU, a smaller model.resolution, or engine.selector_decode: selector"
        )


def time_fact(
    plan: Plan, device: Device, workload: Workload | None, *, rows: tuple[int, ...], prompts: int
) -> TimeFact:
    """Return how long prompts take where every micro-batch is full.

    With fewer prompts than fill the workers, the estimate is that of full ones: too short, never too long.

    Args:
        device: as many as share them.
        workload: of the plan on such a device; None where nobody knows.
        rows: of a full micro-batch, by segment.
    """
    seconds = None
    if workload is not None:
        each = seconds_per_prompt(plan, workload, rows=rows) / device.count
        seconds = max(each, workload.verifier_seconds) * prompts
    return TimeFact(
        seconds=seconds,
        workers=device.count,
        device=device.title,
        source="" if workload is None else workload.source,
        rows=rows if device.memory_bytes is not None else (),
    )


def profile_of(title: str) -> str | None:
    """Return the profile of a GPU by the name that its driver gives it ("NVIDIA H200"); None for unknown."""
    squeezed = title.lower().replace("-", "").replace(" ", "")
    of_kind = [name for name in device_names() if name.partition("-")[0] in squeezed]
    sized = [name for name in of_kind if f"{name.partition('-')[2]}b" in squeezed]
    return next(iter([*sized, *of_kind]), None)


def devices_here(config: JobConfig) -> Device:
    """Return the devices of this machine that a job would use; imports torch."""
    import torch

    share = config.cluster.gpus_per_worker
    if config.model.device == "cpu" or share == 0 or not torch.cuda.is_available():
        count = max(1, (os.cpu_count() or 1) // config.engine.threads)
        return Device(profile="cpu", title="CPU", count=count)
    title = torch.cuda.get_device_name(0)
    known = profile_of(title)
    return Device(
        profile=known or USUAL_GPU,
        title=title if known else f"{title}, with the rates of {USUAL_GPU}",
        count=torch.cuda.device_count(),
        memory_bytes=min(1.0, share or 1.0) * torch.cuda.get_device_properties(0).total_memory,
    )


def device_named(profile: str, count: int) -> Device:
    """Return devices of a kind that is named by its profile.

    Raises:
        ConfigurationError: no such profile.
    """
    loaded = load_profile(profile)
    return Device(
        profile=profile,
        title=loaded.title,
        count=count,
        memory_bytes=loaded.memory_bytes if loaded.is_gpu else None,
    )


def _may_have_gpu() -> bool:
    """Whether there is any sign of a GPU: asking torch takes seconds, most of a plan's."""
    signs = ("nvidia*", "nvhost*", "kfd", "dxg")
    return sys.platform != "linux" or any(any(Path("/dev").glob(sign)) for sign in signs)


def likely_device(job: ResolvedJob) -> DeviceProfile:
    """Return a device that a job may run on, where none is named."""
    model, device = job.config.model, job.config.model.device
    # A job for GPUs can be planned on a machine without one, and the published models are for GPUs.
    on_gpu = device.startswith("cuda") or (
        device == "auto"
        and (model.name in published_names() or (_may_have_gpu() and resolve_device(device).type == "cuda"))
    )
    return load_profile(USUAL_GPU if on_gpu else "cpu")


def planned_run(
    job: ResolvedJob, *, prompts: int, gpus: int, profile: str | None
) -> tuple[OutputFact, TimeFact]:
    """Return what a run of so many prompts would make and take, as its preflight would say it.

    Args:
        gpus: devices that share them.
        profile: of each; None is a usual GPU, or a CPU core where the job runs on CPUs.

    Raises:
        ConfigurationError: no such profile.
    """
    config = job.config
    on_cpu = config.model.device == "cpu" or (config.model.device == "auto" and config.model.name == BUILT_IN)
    device = device_named(profile or ("cpu" if on_cpu else USUAL_GPU), gpus)
    images = prompts * images_kept(config, job.plan)
    job = sized(job, device.known)
    output = OutputFact(
        root=config.output.path,
        parts_there=0,
        parts=-(-prompts // config.output.rows_per_part),
        prompts_left=prompts,
        images=images,
        image_bytes=images * expected_image_bytes(config, job.description),
        free_bytes=free_bytes(locate(config.output.path)) if config.output.path else None,
    )
    rows = rows_of(job.config, job.plan)
    workload = expected_workload(job, device.known)
    return output, time_fact(job.plan, device, workload, rows=rows, prompts=prompts)
