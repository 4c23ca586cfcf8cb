"""How many trajectories a device computes at a time, where a job leaves that open (`auto`).

Two things decide, segment by segment. A pass over few trajectories of a coarse scale takes as long as one
over many: more of them are free until arithmetic takes longer than starting it. And what runs must fit
beside what is held. The numbers depend on the job and on the device's rates and memory, so all workers on one
kind of device have the same ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ttsvar_ray.costs.model import JobNetworks
from ttsvar_ray.costs.profile import DeviceProfile
from ttsvar_ray.costs.seconds import scale_seconds
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.footprint import in_worker, job_networks, recorded_bytes
from ttsvar_ray.job.memory_plan import MemoryPlan, memory_plan
from ttsvar_ray.job.plan import USUAL_ROWS, rows_of
from ttsvar_ray.job.resolved import ResolvedJob
from ttsvar_ray.job.workload import image_line
from ttsvar_ray.search.plan import Segment

MOST_ROWS = 64
"""The coarse scales of Infinity-2B are nearly free up to so many rows (one H200); more would hold back the
prompts that wait for them."""

NEAR_BEST = 1.05
"""Times the seconds that a trajectory takes in a micro-batch of `MOST_ROWS`: more rows are not worth their
memory."""


def sized(job: ResolvedJob, device: DeviceProfile) -> ResolvedJob:
    """Return a job with `engine.micro_batch_rows` in numbers; as it is where it has some.

    Where a GPU has no room for recorded passes beside the job, `engine.cuda_graphs: auto` is "never".

    Args:
        device: where it runs, with the memory that one worker has of it.
    """
    graphs = job.config.engine.cuda_graphs
    if job.config.engine.micro_batch_rows != "auto":
        return job
    try:
        networks = job_networks(job.config, job.description, job.plan, on_gpu=True)
    except ConfigurationError:
        networks = None
    if networks is None or not device.is_gpu:
        return _with(job, USUAL_ROWS, graphs)
    tried = job
    for setting in ("auto", "never") if graphs == "auto" else (graphs,):
        fit = _fit_passes if job.config.engine.deterministic else _fit
        tried, fits = fit(job, networks, device, setting)
        if fits:
            break
    # What does not fit even so is told by whoever checks the memory.
    return tried


def sized_memory(
    job: ResolvedJob, networks: JobNetworks, *, on_gpu: bool = True, rewards: bool = False
) -> MemoryPlan:
    """Return the memory of a job's prompts in its micro-batches.

    Args:
        networks: of the job; what is recorded is counted for its own rows.
        on_gpu: whether anything is recorded.
        rewards: count the rewards also where they live in verifiers, not in the workers.
    """
    config, plan = job.config, job.plan
    networks = networks if rewards else in_worker(networks, config)
    recorded = recorded_bytes(config, job.description, plan, networks.model) if on_gpu else 0
    return memory_plan(
        dataclasses.replace(networks, recorded_bytes=recorded),
        plan,
        selector_decode=config.engine.selector_decode,
        rows=rows_of(config, plan),
        pass_rows=job.pass_rows,
    )


def _fit(
    job: ResolvedJob, networks: JobNetworks, device: DeviceProfile, graphs: str
) -> tuple[ResolvedJob, bool]:
    """Return a job with as many rows as are worth it and have room, and whether at least one has."""
    rows = [_worthwhile(job, networks, device, segment) for segment in job.plan.segments]
    while True:
        tried = _with(job, rows, graphs)
        crowded = _crowded(tried, networks, device)
        # Recordings take the memory of the segment with the largest ones, whichever is crowded.
        widest = range(len(rows)) if graphs == "always" else ()
        fewer = [index for index in crowded if rows[index] > 1] or [i for i in widest if rows[i] > 1]
        if not crowded or not fewer:
            return tried, not crowded
        for index in fewer:
            rows[index] -= 1


def _fit_passes(
    job: ResolvedJob, networks: JobNetworks, device: DeviceProfile, graphs: str
) -> tuple[ResolvedJob, bool]:
    """Do the same where every pass is full: in proportion to the populations, so that few are filled up."""
    populations = [segment.population for segment in job.plan.widest.segments]
    most = populations[0]
    times = [[count * each for each in populations] for count in range(max(1, USUAL_ROWS // most), 0, -1)]
    fewer = [[min(each, count) for each in populations] for count in range(most - 1, 0, -1)]
    tried = job
    for rows in (*times, *fewer):
        tried = _with(job, rows, graphs)
        if not _crowded(tried, networks, device):
            return tried, True
    return tried, False


def _with(job: ResolvedJob, rows: int | Sequence[int], graphs: str) -> ResolvedJob:
    update = {"micro_batch_rows": rows if isinstance(rows, int) else tuple(rows), "cuda_graphs": graphs}
    engine = job.config.engine.model_copy(update=update)
    return dataclasses.replace(job, config=job.config.model_copy(update={"engine": engine}))


def _crowded(job: ResolvedJob, networks: JobNetworks, device: DeviceProfile) -> list[int]:
    """Return the segments whose micro-batches take more memory than a worker has for trajectories."""
    # Rows that decide what is generated must not depend on where the rewards are.
    memory = sized_memory(job, networks, rewards=job.pass_rows is not None)
    given = job.config.engine.memory_gb
    room = memory.room(device.memory_bytes)
    room = room if given is None else min(room, int(given * 1e9))
    crowded = []
    for stage, segment, rows in zip(
        memory.segments, job.plan.widest.segments, rows_of(job.config, job.plan), strict=True
    ):
        # A pass of several prompts; one that is always full is counted as that.
        prompts = 1.0 if job.pass_rows else max(1.0, rows / segment.population)
        if prompts * stage.taken > room:
            crowded.append(segment.index)
    return crowded


def _worthwhile(job: ResolvedJob, networks: JobNetworks, device: DeviceProfile, segment: Segment) -> int:
    """Return the fewest rows at which a trajectory of a segment takes about as long as among very many."""
    model = networks.model
    scales = [
        scale_seconds(model, model.scales[scale], device)
        for scale in range(segment.first_scale, segment.last_scale + 1)
    ]
    decode = job.config.engine.selector_decode
    images = image_line(networks, segment, device, selector_decode=decode, rows=MOST_ROWS)

    def each(rows: int) -> float:
        passes = sum(max(floor, rows * one) for floor, one in scales)
        return (passes + images.fixed) / rows + images.per_row

    good = NEAR_BEST * each(MOST_ROWS)
    return next(rows for rows in range(1, MOST_ROWS + 1) if each(rows) <= good)
