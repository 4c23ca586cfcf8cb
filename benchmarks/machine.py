"""Names of the machine, the software and the commit that a measurement was made on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUSY_LOAD = 0.5
"""Running processes a core, before a measurement begins, from which on others share the machine."""


def cpu_name() -> str:
    """Return the processor's name for people."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit that is checked out, marked where files differ from it."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],  # noqa: S607
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # There may be no git.
        return "unknown"
    return told.stdout.strip() or "unknown"


def record(*packages: str) -> dict[str, Any]:
    """Return what a JSON file of results says of where they come from: hardware, versions, commit, load.

    Args:
        packages: installed distributions whose versions matter.
    """
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return {
        "cpu": cpu_name(),
        "cores": cores,
        "load_before": round(load, 2),
        "machine_was_shared": load > BUSY_LOAD * cores,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "commit": commit(),
    }
