"""The measurements that need no GPU, one after the other, and one table of what they found.

    python -m benchmarks.bench --output benchmarks/results     # `make bench`: under 15 minutes on two cores

Each writes its own JSON file, with hardware, versions, commit, and whether others used the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MEASUREMENTS: dict[str, tuple[str, ...]] = {
    "image_files": ("benchmarks.image_files",),
    "cpu_loop": ("benchmarks.cpu_loop", "--rounds", "1"),
    "precision": ("benchmarks.precision",),
    "limit_cpu": (
        "benchmarks.limit",
        *("--device", "cpu", "--model", "infinity-125m", "--resolution", "0.06M", "--rows", "1", "8"),
    ),
}
"""By the name of the file: module and its arguments, but --output."""


def table(results: dict[str, Any]) -> list[str]:
    """Return lines of what the files say, the numbers that people ask for first."""
    lines = [f"{'measurement':<52}{'value':>28}"]

    def row(name: str, value: str) -> None:
        lines.append(f"{name:<52}{value:>28}")

    if "image_files" in results:
        for name, found in results["image_files"]["images"]["photo-like"].items():
            row(f"{name}, 1024 x 1024", f"{found['milliseconds']:.0f} ms, {found['megabytes']:.2f} MB")
    if "cpu_loop" in results:
        for name, found in results["cpu_loop"]["times as quick as the published loop"].items():
            row(name[:52], f"{found['median']:.2f} times the published loop")
    if "precision" in results:
        for name, found in results["precision"]["built-in reward and its vision tower (trained)"].items():
            row(f"{name}: pairs that change order", found["pairs that change order"])
            row(f"{name}: same best of eight", found["populations whose best image is the same"])
    if "limit_cpu" in results:
        found = results["limit_cpu"]
        row("matmul, one core", f"{found['peaks']['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s")
        for rows, scales in found["scales by trajectories"].items():
            last = [each for each in scales if each is not None][-1]
            row(
                f"{found['model']} at {found['resolution']}, last scale, {rows} trajectories",
                f"{last['milliseconds']:.0f} ms, {last['of_matmul_peak']:.0%} of peak",
            )
    return lines


def main() -> None:
    """Run everything, then print the table."""
    parser = argparse.ArgumentParser(description="All measurements that need no GPU.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON files")
    folder = parser.parse_args().output
    results = {}
    for name, (module, *arguments) in MEASUREMENTS.items():
        file = folder / f"{name}.json"
        start = time.perf_counter()
        command = [sys.executable, "-m", module, *arguments, "--output", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results[name] = json.loads(file.read_text(encoding="utf-8"))
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
