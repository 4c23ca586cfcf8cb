"""Devices as rates: what a kind of GPU, or a CPU core, does in a second.

A profile is a JSON file in `devices/`, or one of your own. Every number says where it comes from; a rate
is either a measured value or a data sheet's peak times an assumed efficiency:

    {
      "format_version": 1, "kind": "ttsvar-ray-device", "name": "h200", "title": "NVIDIA H200 SXM, 141 GB",
      "memory_bytes": {"value": 141e9, "source": "data sheet"},
      "narrow_flops": {"peak": 989.4e12, "efficiency": 0.6, "source": "data sheet x assumed efficiency"},
      ...one entry for each field of `DeviceProfile`...
    }
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttsvar_ray.errors import ConfigurationError

FORMAT_VERSION = 1
KIND = "ttsvar-ray-device"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """What one device does in a second, as far as it is known.

    Attributes:
        name, title: for settings, and for people.
        memory_bytes: of the device; decimal, as on the data sheet.
        narrow_flops: matmuls of the blocks, in their number format (bfloat16 on a GPU).
        attention_flops: attention to the scales before.
        conv_flops: convolutions of the decoder.
        float32_flops: matmuls in float32: rewards, features.
        tf32_flops: the same with factors rounded to TF32; where a device has none, as in float32.
        memory_bytes_per_second: what element-wise work and small matmuls are bound by.
        layer_seconds: host time to start one block at one scale, however little there is to compute.
        decode_seconds: host time to start one decoder call.
        network_seconds: host time to start one call of a reward or of features.
        resize_seconds_per_megapixel: an image brought to a selector's size, wherever that is done.
        png_seconds_per_megapixel, jpeg_seconds_per_megapixel: an image file written on the host.
        sources: field to where its number comes from.
    """

    name: str
    title: str
    memory_bytes: float
    narrow_flops: float
    attention_flops: float
    conv_flops: float
    float32_flops: float
    tf32_flops: float
    memory_bytes_per_second: float
    layer_seconds: float
    decode_seconds: float
    network_seconds: float
    resize_seconds_per_megapixel: float
    png_seconds_per_megapixel: float
    jpeg_seconds_per_megapixel: float
    sources: Mapping[str, str]

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU: every profile but a "cpu"."""
        return not self.name.startswith("cpu")


_NUMBERS = tuple(
    field.name
    for field in dataclasses.fields(DeviceProfile)
    if field.name not in ("name", "title", "sources")
)


def device_names() -> tuple[str, ...]:
    """Return the names of the profiles in the package."""
    folder = importlib.resources.files("ttsvar_ray.costs") / "devices"
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """Return a device profile: one of `device_names()`, or a JSON file.

    Raises:
        ConfigurationError: neither, or a file that is no device profile.
    """
    if str(name_or_path) in device_names():
        folder = importlib.resources.files("ttsvar_ray.costs") / "devices"
        text = (folder / f"{name_or_path}.json").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name_or_path).read_text(encoding="utf-8")
        except OSError:
            raise ConfigurationError(
                f"profile: expected one of {', '.join(device_names())}, or a JSON file; "
                f"got {str(name_or_path)!r}"
            ) from None
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{name_or_path}: not valid JSON: {error}") from None
    return _profile_from_json(content, where=str(name_or_path))


def _profile_from_json(content: Any, *, where: str) -> DeviceProfile:
    """Return the profile that a parsed file holds.

    Args:
        where: its path, for messages.
    """
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise ConfigurationError(f"{where}: expected an object with kind {KIND!r}; is this a device profile?")
    if content.get("format_version") != FORMAT_VERSION:
        raise ConfigurationError(
            f"{where}: format_version: expected {FORMAT_VERSION}, got {content.get('format_version')!r}"
        )
    known = {"format_version", "kind", "name", "title", *_NUMBERS}
    problems = [f"{where}: unknown key {key!r}; remove it" for key in content if key not in known]
    problems += [f"{where}: missing key {key!r}; add it" for key in sorted(known - content.keys())]
    numbers: dict[str, float] = {}
    sources: dict[str, str] = {}
    for name in _NUMBERS:
        entry = content.get(name)
        if entry is None:
            continue
        number = _number(entry)
        if number is None or not isinstance(entry.get("source"), str):
            problems.append(
                f"{where}: {name}: expected value, or peak and efficiency, above 0, and source; got {entry!r}"
            )
            continue
        numbers[name], sources[name] = number, entry["source"]
    if problems:
        raise ConfigurationError(problems)
    return DeviceProfile(name=str(content["name"]), title=str(content["title"]), sources=sources, **numbers)


def _number(entry: Any) -> float | None:
    """Return value, or peak x efficiency; None where neither is a positive number."""
    if not isinstance(entry, Mapping):
        return None
    if entry.keys() == {"value", "source"}:
        factors = [entry["value"]]
    elif entry.keys() == {"peak", "efficiency", "source"}:
        factors = [entry["peak"], entry["efficiency"]]
    else:
        return None
    product = 1.0
    for factor in factors:
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < float("inf"):
            return None
        product *= factor
    return product


_SECONDS = 0.03
"""Of each kind of work: longer than a process runs at a time, so that what others take is in it."""


def measured_cpu(
    profile: DeviceProfile, *, threads: int, clock: Callable[[], float] = time.perf_counter
) -> DeviceProfile:
    """Return a CPU's profile with the rates of this processor in place of its own, where they weigh most.

    Sizes are those of a small model's blocks and decoder: small matrices run at other rates than large ones,
    and what lies between them, measured on a norm, is bound by more than memory.

    Args:
        profile: of a CPU.
        threads: that a worker has.
        clock: seconds.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            rates = _rates(clock)
    finally:
        torch.set_num_threads(before)
    sources = {**profile.sources, **dict.fromkeys(rates, "measured just now")}
    return dataclasses.replace(profile, name=f"{profile.name}, measured here", sources=sources, **rates)


def _rates(clock: Callable[[], float]) -> dict[str, Any]:
    # As it is now, with what else runs on it: processors differ by a factor of three, and busy ones by more.
    import torch
    import torch.nn.functional as F

    def seconds(run: Callable[[], object]) -> float:
        run()
        begun, times, spent = clock(), 0, 0.0
        while spent < _SECONDS:
            run()
            times, spent = times + 1, clock() - begun
        return spent / times

    x, hidden, weight = torch.ones(256, 192), torch.ones(256, 768), torch.ones(768, 192)
    q, k = torch.ones(1, 6, 256, 32), torch.ones(1, 6, 512, 32)
    image, kernel = torch.ones(1, 64, 48, 48), torch.ones(64, 64, 3, 3)
    matmul = 2 * x.numel() * len(weight) / seconds(lambda: F.linear(x, weight))
    attention = 4 * q.numel() * k.shape[-2] / seconds(lambda: F.scaled_dot_product_attention(q, k, k))
    convolution = 2 * image.numel() * kernel[0].numel() / seconds(lambda: F.conv2d(image, kernel, padding=1))
    between = 2 * hidden.nbytes / seconds(lambda: F.layer_norm(hidden, hidden.shape[-1:]))
    return {
        "narrow_flops": matmul,
        "float32_flops": matmul,
        "attention_flops": attention,
        "conv_flops": convolution,
        "memory_bytes_per_second": between,
    }
