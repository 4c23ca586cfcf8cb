"""What the segments of a job cost a worker: `coordination.settings` filled from counted costs and rates."""

from __future__ import annotations

import logging
import math

from ttsvar_ray.coordination.settings import SegmentLoad, Workload
from ttsvar_ray.costs.model import JobNetworks, ModelCost
from ttsvar_ray.costs.profile import DeviceProfile
from ttsvar_ray.costs.seconds import (
    Line,
    chord,
    decode_line,
    encode_file_seconds,
    network_line,
    scale_line,
    text_seconds,
)
from ttsvar_ray.engine.encode import ENCODE_THREADS
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.plan import rows_of
from ttsvar_ray.job.resolved import ResolvedJob, image_settings
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Segment

logger = logging.getLogger(__name__)


def expected_workload(job: ResolvedJob, profile: DeviceProfile) -> Workload | None:
    """Return what the coordinators of a job may expect of workers on a device; None where nobody counted."""
    try:
        return build_workload(job, profile)
    except ConfigurationError as error:
        logger.info("work is placed by rows alone: %s", error)
        return None


def build_workload(job: ResolvedJob, profile: DeviceProfile) -> Workload:
    """Return the loads of a plan's segments on a kind of device.

    Seconds are estimates from rates; bytes are counted. A prompt's text is held once per worker and
    spread over the trajectories of a whole population, so a worker that has only a part of them holds
    somewhat more than this says.

    Args:
        job: the job.
        profile: the device; every profile but a "cpu" is a GPU.

    Raises:
        ConfigurationError: a model family or a reward whose costs are not counted.
    """
    networks = job_networks(job.config, job.description, job.plan, on_gpu=is_gpu(profile))
    return workload_of(job, networks, profile)


def is_gpu(profile: DeviceProfile) -> bool:
    """Whether a profile is a GPU's."""
    return not profile.name.startswith("cpu")


def workload_of(job: ResolvedJob, networks: JobNetworks, profile: DeviceProfile) -> Workload:
    """Return the loads of a plan's segments for known costs; see `build_workload`."""
    plan, selector_decode = job.plan, job.config.engine.selector_decode
    model, costs = networks.model, networks.model.scales
    most = rows_of(job.config, plan)
    fixed = job.pass_rows
    lines = [
        scale_line(model, costs[scale], profile, rows)
        for segment, rows in zip(plan.segments, most, strict=True)
        for scale in _scales(segment)
    ]
    segments = []
    for segment in plan.segments:
        time = _total([lines[scale] for scale in _scales(segment)])
        if segment.index == 0:
            time += Line(0.0, text_seconds(networks, profile) / segment.population)
        time += image_line(
            networks, segment, profile, selector_decode=selector_decode, rows=most[segment.index]
        )
        if segment.is_last:
            time += _files(job, networks, profile, rows=most[segment.index])
        # Of one parent; a pass that is filled up has the rows that its scales had before.
        replay = sum(
            lines[scale].fixed + (1 if fixed is None else fixed[one.index]) * lines[scale].per_row
            for one in plan.segments[: segment.index]
            for scale in _scales(one)
        )
        segments.append(
            SegmentLoad(
                tokens=sum(costs[scale].tokens for scale in _scales(segment)),
                held_bytes=held_bytes(model, segment),
                running_bytes=running_bytes(
                    networks,
                    segment,
                    rows=segment.population if fixed is None else fixed[segment.index],
                    selector_decode=selector_decode,
                ),
                batch_seconds=time.fixed,
                row_seconds=time.per_row,
                replay_seconds=replay,
                pass_rows=0 if fixed is None else fixed[segment.index],
            )
        )
    replicas = job.config.verifiers.replicas
    return Workload(
        segments=tuple(segments),
        source=f"counted, rates of {profile.name}",
        verifier_seconds=_scoring_seconds(job, networks, profile) / replicas if replicas else 0.0,
    )


def _scoring_seconds(job: ResolvedJob, networks: JobNetworks, profile: DeviceProfile) -> float:
    """Return what one device takes for the scores of a prompt's images."""
    seconds = 0.0
    for segment in job.plan.segments:
        for scale in segment.scored_scales:
            look = segment.look(scale)
            if look is not None and look.ahead_to is None:
                continue  # read off the feature map, in the worker
            final = segment.is_last and scale == segment.last_scale
            size = "full" if final else job.config.engine.selector_decode
            line = network_line(
                networks.reward,
                networks.model.decodes[size].pixels,
                profile,
                padded=is_gpu(profile),
                precision=networks.reward_precision,
            )
            seconds += line.fixed + segment.population * line.per_row
    return seconds


def _files_per_trajectory(job: ResolvedJob) -> float:
    """Return how many image files a worker writes of each trajectory that reaches the end.

    Where one reward decides and the best is kept, a shard writes one; a prompt is taken to be one shard.
    """
    one = job.config.output.keep == "best" and job.plan.reward_members == 1
    return 1 / job.plan.survivors_after[-1] if one else 1.0


def held_bytes(model: ModelCost, segment: Segment) -> int:
    """Return what stays of one trajectory after a segment, its share of the prompt's text included."""
    if segment.is_last:
        return 0
    return model.scales[segment.last_scale].state_bytes + model.text.held_bytes // segment.population


def running_bytes(networks: JobNetworks, segment: Segment, *, rows: int, selector_decode: str) -> int:
    """Return the most bytes that one trajectory takes while a segment runs: in its scales, or while its
    images are decoded, whichever is more.

    Images are decoded a few at a time, whatever the micro-batch: their bytes are spread over its rows. Memory
    for the keys and values of the whole segment is taken at its first scale, beside the state it starts from.

    Args:
        rows: of the micro-batch.
        selector_decode: "full" or "selector", the size of the images that selections look at.
    """
    model = networks.model
    peak, end = 0, model.scales[segment.last_scale].state_bytes
    for scale in _scales(segment):
        sizes = _decoded_sizes(segment, scale, selector_decode)
        cost, decoded = (
            model.scales[scale],
            max((model.decodes[size].bytes_of(rows) for size in sizes), default=0),
        )
        if ahead := networks.ahead_of(segment.look(scale)):
            # Beside the state that is gone on from afterwards.
            peak = max(peak, end + max(further.running_bytes for further in ahead))
            decoded += rows * ahead[-1].state_bytes
        before = model.scales[scale - 1].state_bytes if scale else 0
        taken = cost.running_bytes
        if scale < len(model.scales) - 1:
            # As counted, the scale makes a new state beside the one before.
            taken += end - cost.state_bytes - (0 if scale == segment.first_scale else before)
        peak = max(peak, taken, end + math.ceil(decoded / rows))
    return peak


def _decoded_sizes(segment: Segment, scale: int, selector_decode: str) -> list[str]:
    """Return the size of each decode of a trajectory after a scale: none, one, or one and a look ahead's."""
    if scale == segment.last_scale and segment.is_last:
        return ["full"]
    look, scored = segment.look(scale), scale in segment.scored_scales
    embedded = scale == segment.last_scale and Signal.FEATURES in segment.reads
    ahead = look is not None and look.ahead_to is not None
    return [selector_decode] * (int(embedded or (scored and look is None)) + int(ahead))


def image_line(
    networks: JobNetworks,
    segment: Segment,
    profile: DeviceProfile,
    *,
    selector_decode: str,
    rows: int,
) -> Line:
    """Return the time of all looks of a segment: running ahead, decodes, scores and features.

    Args:
        rows: a full micro-batch.
    """
    time, padded = Line(), is_gpu(profile)
    for scale in _scales(segment):
        last, look = scale == segment.last_scale, segment.look(scale)
        sizes = _decoded_sizes(segment, scale, selector_decode)
        decode = networks.model.decodes["full" if last and segment.is_last else selector_decode]
        time += _total([decode_line(decode, profile) for _ in sizes])
        time += _total([scale_line(networks.model, one, profile, rows) for one in networks.ahead_of(look)])
        if scale in segment.scored_scales:
            on_map, precision = look is not None and look.ahead_to is None, networks.reward_precision
            reward, pixels = (networks.map_reward, 0) if on_map else (networks.reward, decode.pixels)
            time += network_line(reward, pixels, profile, padded=padded, precision=precision)
        if last and Signal.FEATURES in segment.reads:
            precision = networks.extractor_precision
            time += network_line(
                networks.extractor, decode.pixels, profile, padded=padded, precision=precision
            )
    return time


def _files(job: ResolvedJob, networks: JobNetworks, profile: DeviceProfile, *, rows: int) -> Line:
    """Return the time until the image files of a micro-batch of so many rows are written."""
    image_format, quality, png_level = image_settings(job.config)
    pixels = networks.model.decodes["full"].pixels
    one = encode_file_seconds(image_format, pixels, profile, quality=quality, png_level=png_level)
    each = _files_per_trajectory(job) * one / ENCODE_THREADS
    return chord(lambda count: max(one, count * each), rows)


def _scales(segment: Segment) -> range:
    return range(segment.first_scale, segment.last_scale + 1)


def _total(lines: list[Line]) -> Line:
    return sum(lines, Line())
