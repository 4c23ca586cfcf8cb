"""What the segments of a job cost a worker: `coordination.workload` filled from counted costs and rates."""

from __future__ import annotations

import dataclasses
import logging
import math

from ttsvar_ray.coordination.workload import SegmentLoad, Workload, rows_by_segment
from ttsvar_ray.costs import DeviceProfile, ModelShape, load_profile, scale_costs
from ttsvar_ray.costs.memory import conditioning_bytes, state_bytes, step_bytes
from ttsvar_ray.costs.seconds import (
    Line,
    decode_line,
    encode_file_seconds,
    network_line,
    scale_line,
    text_seconds,
)
from ttsvar_ray.costs.shape import ScaleCost
from ttsvar_ray.engine.encode import ENCODE_THREADS
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.footprint import model_shape
from ttsvar_ray.job.resolved import ResolvedJob
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Segment

logger = logging.getLogger(__name__)


def expected_workload(job: ResolvedJob, profile: str) -> Workload | None:
    """Return what the coordinators of a job may expect of workers on a device, None where nobody has counted.

    Args:
        job: the job.
        profile: name of the device's profile.
    """
    try:
        return build_workload(job, load_profile(profile))
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
        profile: the device; every profile but "cpu" is a GPU.

    Raises:
        ConfigurationError: a model family or a reward whose costs are not counted.
    """
    model = model_shape(job.config, job.description, job.plan, on_gpu=is_gpu(profile))
    return workload_of(job, model, profile)


def is_gpu(profile: DeviceProfile) -> bool:
    """Whether a profile is a GPU's."""
    return not profile.name.startswith("cpu")


def workload_of(job: ResolvedJob, model: ModelShape, profile: DeviceProfile) -> Workload:
    """Return the loads of a plan's segments for known sizes; see `build_workload`."""
    padded = dataclasses.replace(model.transformer, text_length=model.transformer.text_max_length)
    plan, selector_decode = job.plan, job.config.engine.selector_decode
    costs = scale_costs(plan.scale_schedule, padded)
    most = rows_by_segment(job.config.engine.micro_batch_rows, plan)
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
            time += Line(0.0, text_seconds(model, profile) / segment.population)
        time += _images(
            model,
            segment,
            profile,
            selector_decode=selector_decode,
            image_format=job.config.output.image_format,
        )
        # Of one parent; a pass that is filled up has the rows that its scales had before.
        replay = sum(
            lines[scale].fixed + (1 if fixed is None else fixed[one.index]) * lines[scale].per_row
            for one in plan.segments[: segment.index]
            for scale in _scales(one)
        )
        segments.append(
            SegmentLoad(
                tokens=sum(costs[scale].tokens for scale in _scales(segment)),
                held_bytes=held_bytes(model, costs, segment),
                running_bytes=running_bytes(
                    model,
                    costs,
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
    return Workload(segments=tuple(segments), source=f"counted, rates of {profile.name}")


def held_bytes(model: ModelShape, costs: tuple[ScaleCost, ...], segment: Segment) -> int:
    """Return what stays of one trajectory after a segment, its share of the prompt's text included."""
    if segment.is_last:
        return 0
    text = conditioning_bytes(model.transformer) // segment.population
    return state_bytes(costs[segment.last_scale], model.transformer, model.map_values) + text


def running_bytes(
    model: ModelShape, costs: tuple[ScaleCost, ...], segment: Segment, *, rows: int, selector_decode: str
) -> int:
    """Return the most bytes that one trajectory takes while a segment runs: in its scales, or while its
    images are decoded, whichever is more.

    Images are decoded a few at a time, whatever the micro-batch: their bytes are spread over its rows.

    Args:
        rows: of the micro-batch.
        selector_decode: "full" or "selector", the size of the images that selections look at.
    """
    last = len(costs) - 1
    peak = 0
    for scale in _scales(segment):
        before = costs[scale - 1] if scale else None
        step = step_bytes(before, costs[scale], model.transformer, model.map_values, is_last=scale == last)
        # The last scale's own keys and values are not kept.
        kept = before if scale == last else costs[scale]
        state = 0 if kept is None else state_bytes(kept, model.transformer, model.map_values)
        size = _decoded_size(segment, scale, selector_decode)
        decoded = 0 if size is None else model.decode_bytes(size, rows)
        peak = max(peak, step, state + math.ceil(decoded / rows))
    return peak


def _decoded_size(segment: Segment, scale: int, selector_decode: str) -> str | None:
    """Return at which size images are decoded after a scale, None where they are not."""
    if scale == segment.last_scale and segment.is_last:
        return "full"
    looked_at = scale in segment.scored_scales or (
        scale == segment.last_scale and Signal.FEATURES in segment.reads
    )
    return selector_decode if looked_at else None


def _images(
    model: ModelShape, segment: Segment, profile: DeviceProfile, *, selector_decode: str, image_format: str
) -> Line:
    """Return the time of the images that a segment decodes, scores and writes."""
    time = Line()
    for scale in _scales(segment):
        size = _decoded_size(segment, scale, selector_decode)
        if size is None:
            continue
        final = segment.is_last and scale == segment.last_scale
        scored = scale in segment.scored_scales
        embedded = scale == segment.last_scale and Signal.FEATURES in segment.reads
        time += decode_line(
            model,
            size,
            profile,
            decode_rows=model.decode_rows(size),
            element_bytes=model.transformer.element_bytes,
        )
        height, width = model.decoded_map(size)
        pixels = height * width * model.decoder.patch_size**2
        if scored:
            time += network_line(
                model.reward,
                pixels,
                profile,
                padded=is_gpu(profile),
                element_bytes=model.reward_element_bytes,
            )
        if embedded:
            time += network_line(model.extractor, pixels, profile, padded=is_gpu(profile))
        if final:
            written = encode_file_seconds(image_format, pixels, profile)
            time += Line(0.0, written / ENCODE_THREADS)
    return time


def _scales(segment: Segment) -> range:
    return range(segment.first_scale, segment.last_scale + 1)


def _total(lines: list[Line]) -> Line:
    return sum(lines, Line())
