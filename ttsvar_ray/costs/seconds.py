"""From counted FLOPs and bytes to seconds, by a device's rates. An estimate: it says so wherever it is shown.

A scale of a micro-batch takes the longest of three: its arithmetic, the reading of the weights, and the time
in which the host starts its kernels. That is a curve with a flat beginning; `Line` is the straight line
through its values at one trajectory and at a full micro-batch, which is never below the curve in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ttsvar_ray.costs.model import DecodeCost, ModelCost, ScaleCost
from ttsvar_ray.costs.profile import DeviceProfile
from ttsvar_ray.types import Precision
from ttsvar_ray.vision.published import NetworkCost

ELEMENTWISE_BYTES = 300
"""Memory traffic outside matmuls and attention, per token, channel and block: norms, modulation, rotation,
casts and residuals of the eager code. Counted in published code at 322; this code does about the same."""


PADDING = 4 / 3
"""Rows that are computed for each image where batches are padded to the next power of two, on average."""


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a micro-batch: `fixed`, and `per_row` for each trajectory; both at least 0."""

    fixed: float = 0.0
    per_row: float = 0.0

    def __add__(self, other: Line) -> Line:
        return Line(self.fixed + other.fixed, self.per_row + other.per_row)


def chord(curve: Callable[[int], float], rows: int) -> Line:
    """Return the line through a curve's values at 1 and at `rows` trajectories.

    Args:
        curve: max of a constant and a multiple of its argument, so that the line's parts are not negative.
    """
    one = curve(1)
    if rows < 2:
        return Line(0.0, one)
    slope = (curve(rows) - one) / (rows - 1)
    return Line(max(one - slope, 0.0), slope)


def scale_line(model: ModelCost, cost: ScaleCost, device: DeviceProfile, rows: int) -> Line:
    """Return the time of one scale, with a text of the most tokens.

    Args:
        rows: a full micro-batch.
    """
    floor, each = scale_seconds(model, cost, device)
    return chord(lambda count: max(floor, count * each), rows)


def scale_seconds(model: ModelCost, cost: ScaleCost, device: DeviceProfile) -> tuple[float, float]:
    """Return what a scale takes however few trajectories run, and what each of them takes where many do."""
    matmuls = cost.linear_flops / device.narrow_flops
    attention = (cost.attention_flops + cost.text_attention_flops) / device.attention_flops
    # A token leaves a key and a value in every channel of every block and sequence.
    channels = cost.kv_bytes // (2 * model.element_bytes * cost.cumulative_tokens)
    missed = cost.cumulative_tokens - cost.tokens if cost.passes > 1 else 0
    moved = (cost.tokens + missed / 2) * channels * ELEMENTWISE_BYTES
    # As in the engine whose times the profiles were fitted to, which wrote the cache anew at every scale:
    # read, written, and read by the attention. Now it is written in place, which was not timed yet.
    moved += 3 * cost.kv_bytes
    each = matmuls + attention + moved / device.memory_bytes_per_second
    floor = max(model.depth * device.layer_seconds, model.block_bytes / device.memory_bytes_per_second)
    return floor * cost.passes, each


def decode_line(decode: DecodeCost, device: DeviceProfile) -> Line:
    """Return the time to decode the images of a micro-batch."""
    each = decode.flops / device.conv_flops + decode.traffic_bytes / device.memory_bytes_per_second
    return Line(device.decode_seconds, each + device.decode_seconds / decode.rows)


def network_line(
    network: NetworkCost,
    pixels: int,
    device: DeviceProfile,
    *,
    padded: bool,
    precision: Precision = Precision.FLOAT32,
) -> Line:
    """Return the time of a reward or of features.

    Args:
        pixels: of the images they are given.
        padded: whether calls are padded to a power of two, as on an accelerator.
        precision: that its networks compute in.
    """
    if network.image_flops == 0:
        return Line()
    rate = {Precision.FLOAT32: device.float32_flops, Precision.TF32: device.tf32_flops}
    each = network.image_flops / rate.get(precision, device.narrow_flops)
    each = max(each, network.layers_each * device.layer_seconds)
    resize = device.resize_seconds_per_megapixel * pixels / 1e6
    return Line(device.network_seconds, (PADDING if padded else 1.0) * each + resize)
