"""The machine: processors, memory, GPUs, disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ttsvar_ray.cli.doctor.finding import Finding, Mark
from ttsvar_ray.cli.units import bytes_text

AREA = "machine"
LEAST_DISK_BYTES = 20e9
OBJECT_STORE_SHARE = 0.3
"""Of memory: what Ray's object store takes by default, in /dev/shm where that is large enough."""

_CGROUP = Path("/sys/fs/cgroup")


def check_machine() -> list[Finding]:
    """Look at processors, memory and its limits, shared memory, and GPUs."""
    memory, limit = _total_memory(), memory_limit()
    usable = memory if limit is None else min(memory, limit)
    text = f"{bytes_text(memory)}"
    if limit is not None and limit < memory:
        text += f", of which this container may use {bytes_text(limit)}"
    quota = cpu_limit()
    cpus = f"{os.cpu_count()} CPUs"
    if quota is not None:
        cpus += f", of which this container may use {quota:g}"
    return [
        Finding(area=AREA, name="cpu", mark=Mark.OK, text=cpus),
        Finding(area=AREA, name="memory", mark=Mark.OK, text=text),
        _shared_memory(usable),
        *_gpus(),
    ]


def check_disk(folders: dict[str, Path]) -> list[Finding]:
    """Look at the free space where something will be written.

    Args:
        folders: a name for each; the nearest folder that exists is looked at.
    """
    findings = []
    for name, folder in folders.items():
        existing = folder.expanduser().absolute()
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        enough = free >= LEAST_DISK_BYTES
        findings.append(
            Finding(
                area="disk",
                name=name,
                mark=Mark.OK if enough else Mark.WARN,
                text=f"{bytes_text(free)} free at {folder}"
                + ("" if enough else f"; less than {bytes_text(LEAST_DISK_BYTES)} is soon full of images"),
            )
        )
    return findings


def memory_limit(root: Path = _CGROUP) -> int | None:
    """Return the memory limit of this container in bytes; None where there is none."""
    for file in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        if file.is_file():
            text = file.read_text().strip()
            # Version 1 writes "no limit" as a number near 2**63.
            return int(text) if text.isdecimal() and int(text) < 2**60 else None
    return None


def cpu_limit(root: Path = _CGROUP) -> float | None:
    """Return the CPUs that this container may use; None where there is no limit."""
    file = root / "cpu.max"
    if not file.is_file():
        return None
    quota, _, period = file.read_text().strip().partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _shared_memory(usable: float) -> Finding:
    folder = Path("/dev/shm")  # noqa: S108 - where Ray keeps its object store
    name = "shared memory"
    if not folder.is_dir():
        return Finding(area=AREA, name=name, mark=Mark.WARN, text=f"no {folder}; Ray will use the slow /tmp")
    size = shutil.disk_usage(folder).total
    wanted = OBJECT_STORE_SHARE * usable
    if size >= wanted:
        return Finding(area=AREA, name=name, mark=Mark.OK, text=f"{bytes_text(size)} at {folder}")
    return Finding(
        area=AREA,
        name=name,
        mark=Mark.WARN,
        text=f"{bytes_text(size)} at {folder}; Ray wants {bytes_text(wanted)} for its object store and will "
        "use the slow /tmp: start the container with a larger --shm-size",
    )


def _gpus() -> list[Finding]:
    import torch

    build = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        text = f"none that torch sees ({build}, {f'CUDA {built}' if built else 'built without CUDA'})"
        return [
            Finding(
                area=AREA,
                name="gpu",
                mark=Mark.WARN,
                text=f"{text}; the built-in model runs on CPUs, the published ones want a GPU",
            )
        ]
    findings = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        findings.append(
            Finding(
                area=AREA,
                name=f"gpu {index}",
                mark=Mark.OK if free > total / 2 else Mark.WARN,
                text=f"{properties.name}, {bytes_text(free)} of {bytes_text(total)} free "
                f"({build}, CUDA {torch.version.cuda})",
            )
        )
    return findings
