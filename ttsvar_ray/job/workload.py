"""What the segments of a job cost a worker: `coordination.settings` filled from counted costs and rates.

Or from a JSON file: what a measurement leaves, and what a simulation or a job is planned with.

    {
      "format_version": 1,
      "kind": "ttsvar-ray-workload",
      "source": "measured on 2 CPU cores, built-in model, TTS-VAR N=1",
      "segments": [
        {"tokens": 64, "held_bytes": 0, "running_bytes": 0,
         "batch_seconds": 0.012, "row_seconds": 0.003, "replay_seconds": 0.0},
        ...one object per segment of the plan, in order...
      ]
    }

`held_bytes`, `running_bytes`, `replay_seconds` and `pass_rows` may be left out (0). Meanings: `SegmentLoad`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttsvar_ray.coordination.settings import SegmentLoad, Workload
from ttsvar_ray.costs.model import JobNetworks, ModelCost
from ttsvar_ray.costs.profile import DeviceProfile
from ttsvar_ray.costs.seconds import Line, chord, decode_line, network_line, scale_line
from ttsvar_ray.engine.encode import ENCODE_THREADS
from ttsvar_ray.errors import ConfigurationError
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.plan import rows_of
from ttsvar_ray.job.resolved import ResolvedJob, image_settings
from ttsvar_ray.search.operators.protocol import Signal
from ttsvar_ray.search.plan import Segment

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
KIND = "ttsvar-ray-workload"
_FIELDS = {field.name: field for field in dataclasses.fields(SegmentLoad)}
_WHOLE_NUMBERS = ("tokens", "held_bytes", "running_bytes", "pass_rows")
_KEYS = ("format_version", "kind", "source", "segments")
PNG_LEVEL_SHARE = {0: 0.2, 1: 0.4, 2: 0.45, 3: 0.5, 4: 0.7, 5: 0.85}
"""Of the time at level 6 and above, photo-like images (`benchmarks.image_files`)."""
LOSSLESS_WEBP_SHARE = 0.15


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
        profile: the device; every profile but a "cpu" is a GPU.

    Raises:
        ConfigurationError: a model family or a reward whose costs are not counted.
    """
    networks = job_networks(job.config, job.description, job.plan, on_gpu=profile.is_gpu)
    return workload_of(job, networks, profile)


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
            time += Line(0.0, _text_seconds(networks, profile) / segment.population)
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
                padded=profile.is_gpu,
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
    networks: JobNetworks, segment: Segment, profile: DeviceProfile, *, selector_decode: str, rows: int
) -> Line:
    """Return the time of all looks of a segment: running ahead, decodes, scores and features."""
    time, padded = Line(), profile.is_gpu
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
    one = _encode_file_seconds(image_format, pixels, profile, quality=quality, png_level=png_level)
    each = _files_per_trajectory(job) * one / ENCODE_THREADS
    return chord(lambda count: max(one, count * each), rows)


def _text_seconds(networks: JobNetworks, device: DeviceProfile) -> float:
    """Return the time to encode one prompt's text, as one of the most tokens."""
    model, encoder, reward = networks.model, networks.text_encoder, networks.reward
    seconds = reward.text_flops / device.float32_flops
    if not model.text_tokens:
        return seconds
    launches = device.layer_seconds * (encoder.depth + model.depth / 4)
    return seconds + max((encoder.flops() + model.text.flops) / device.narrow_flops, launches)


def _encode_file_seconds(
    image_format: str, pixels: int, device: DeviceProfile, *, quality: int, png_level: int
) -> float:
    """Return the time of one thread to write one image file ("png", "webp" or "jpeg")."""
    if image_format == "jpeg":
        return device.jpeg_seconds_per_megapixel * pixels / 1e6
    share = PNG_LEVEL_SHARE.get(png_level, 1.0)
    if image_format == "webp":
        share = LOSSLESS_WEBP_SHARE if quality == 100 else 1.0
    return share * device.png_seconds_per_megapixel * pixels / 1e6


def _scales(segment: Segment) -> range:
    return range(segment.first_scale, segment.last_scale + 1)


def _total(lines: list[Line]) -> Line:
    return sum(lines, Line())


def write_workload(path: Path, workload: Workload) -> None:
    """Write a workload; `read_workload` returns an equal one."""
    content = {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "source": workload.source,
        "segments": [dataclasses.asdict(segment) for segment in workload.segments],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_workload(path: Path) -> Workload:
    """Read a workload.

    Raises:
        ConfigurationError: no such file, not this format, or entries that mean nothing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); give a workload file") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise ConfigurationError(f"{path}: expected an object with kind {KIND!r}; is this a workload file?")
    if content.get("format_version") != FORMAT_VERSION:
        raise ConfigurationError(
            f"{path}: format_version: expected {FORMAT_VERSION}, got {content.get('format_version')!r}; "
            "it was written by another version of this package"
        )
    problems = [f"{path}: unknown key {key!r}; remove it" for key in content if key not in _KEYS]
    segments = content.get("segments")
    if not isinstance(segments, list) or not segments:
        raise ConfigurationError([*problems, f"{path}: segments: expected one object per segment"])
    for index, values in enumerate(segments):
        problems += [f"{path}: segments[{index}]{problem}" for problem in _problems(values)]
    if problems:
        raise ConfigurationError(problems)
    return Workload(
        segments=tuple(SegmentLoad(**values) for values in segments),
        source=str(content.get("source", path.name)),
    )


def _problems(values: Any) -> list[str]:
    if not isinstance(values, Mapping):
        return [f": expected an object, got {type(values).__name__}"]
    problems = [
        f".{name}: unknown key; known are {', '.join(_FIELDS)}" for name in values if name not in _FIELDS
    ]
    for name, field in _FIELDS.items():
        if name not in values:
            if field.default is dataclasses.MISSING:
                problems.append(f".{name}: missing")
            continue
        value = values[name]
        allowed = (int,) if name in _WHOLE_NUMBERS else (int, float)
        # JSON has no infinity, but Python's reader accepts one.
        if isinstance(value, bool) or not isinstance(value, allowed) or not 0 <= value < float("inf"):
            kind = "whole number" if name in _WHOLE_NUMBERS else "number"
            problems.append(f".{name}: expected a {kind} of at least 0, got {value!r}")
    return problems
