"""How near the chip's limit each scale comes: share of a measured matmul peak, and of a measured bandwidth.

    python -m benchmarks.limit --output FILE.json                     # Infinity-2B at 1M on a GPU
    python -m benchmarks.limit --device cpu --model infinity-125m --resolution 0.06M --output FILE.json

FLOPs and bytes are those that a plan counts (`costs/count.py`); peaks are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_infinity import Case, hardware, job
from benchmarks.machine import record
from benchmarks.parts import ROWS, scale_seconds, seconds_of
from benchmarks.random_networks import NetworkSizes, random_model
from benchmarks.row_dependence import TEXTS, execution_of
from ttsvar_ray.costs.model import JobNetworks
from ttsvar_ray.job.footprint import job_networks
from ttsvar_ray.job.resolved import resolve
from ttsvar_ray.models.infinity.model import InfinityModel
from ttsvar_ray.models.infinity.presets import find_preset
from ttsvar_ray.models.infinity.resolutions import published_resolution
from ttsvar_ray.models.registry import resolve_device, resolve_dtype


def peaks(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Return FLOP/s of a large matmul and bytes/s of a large copy."""
    side, values = (8192, 2**29) if device.type == "cuda" else (1024, 2**25)
    left = torch.randn(side, side, device=device, dtype=dtype)
    source = torch.zeros(values, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return {
        "matmul_flops_per_second": 2 * side**3 / seconds_of(lambda: left @ left),
        "copy_bytes_per_second": 2 * values / seconds_of(lambda: target.copy_(source)),
    }


def shares(
    model: InfinityModel, networks: JobNetworks, peak: dict[str, float], *, rows: tuple[int, ...] = ROWS
) -> dict[str, Any]:
    """Return, by trajectories and scale, milliseconds and the shares of both peaks."""
    table: dict[str, Any] = {}
    for count in rows:
        lines = []
        for cost, seconds in zip(networks.model.scales, scale_seconds(model, count, TEXTS[0]), strict=True):
            if seconds is None:
                lines.append(None)
                continue
            flops = count * (cost.linear_flops + cost.attention_flops + cost.text_attention_flops)
            # What cannot be avoided: the weights once, the cache read and its new part written.
            moved = networks.model.block_bytes + count * cost.kv_bytes
            lines.append(
                {
                    "milliseconds": round(1000 * seconds, 3),
                    "of_matmul_peak": round(flops / seconds / peak["matmul_flops_per_second"], 4),
                    "of_bandwidth": round(moved / seconds / peak["copy_bytes_per_second"], 4),
                }
            )
        table[str(count)] = lines
    return table


def measure(
    sizes: NetworkSizes,
    *,
    resolution: str,
    device: torch.device,
    dtype: torch.dtype,
    rows: tuple[int, ...] = ROWS,
) -> dict[str, Any]:
    """Return what the JSON file holds."""
    name = str(dtype).removeprefix("torch.")
    resolved = resolve(job(sizes.preset.name, resolution, name, Case()))
    networks = job_networks(
        resolved.config, resolved.description, resolved.plan, on_gpu=device.type == "cuda"
    )
    model = random_model(sizes, published_resolution(resolution), device=device, dtype=dtype)
    model.set_execution(execution_of(resolved.plan, "auto"))
    peak = peaks(device, dtype)
    return {
        "model": sizes.preset.name,
        "resolution": resolution,
        "dtype": name,
        "machine": record("torch", "numpy") | {"device": hardware(device)},
        "peaks": peak,
        "scales by trajectories": shares(model, networks, peak, rows=rows),
    }


def main() -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description="Share of the chip's limit, scale by scale.")
    parser.add_argument("--model", default="infinity-2b", help="a published Infinity")
    parser.add_argument("--resolution", default="1M", help="0.06M, 0.25M, 0.60M or 1M")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--dtype", default="auto", help="of the blocks")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="trajectories of a pass")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    device = resolve_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    result = measure(
        NetworkSizes(preset=find_preset(options.model)),
        resolution=options.resolution,
        device=device,
        dtype=resolve_dtype(options.dtype, device),
        rows=tuple(options.rows),
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
