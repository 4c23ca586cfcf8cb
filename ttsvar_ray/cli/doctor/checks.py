"""What `doctor` looks at beside weights: packages, the machine, Ray, and one image of the built-in model."""

from __future__ import annotations

import enum
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ttsvar_ray.cli.show import bytes_text

LEAST_DISK_BYTES = 20e9
OBJECT_STORE_SHARE = 0.3
"""Of memory: what Ray's object store takes by default, in /dev/shm where that is large enough."""
OLDEST_PYTHON = (3, 10)
OPTIONAL = {"ftfy": "HPS and CLIP rewards", "matplotlib": "plots of simulations"}
"""Packages that only some parts need, and which."""

_CGROUP = Path("/sys/fs/cgroup")
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*>=\s*(?P<version>[\d.]+)\s*$")


class Mark(str, enum.Enum):
    """How a finding stands."""

    OK = "ok"
    WARN = "warn"
    """Works, but somebody should know."""
    MISSING = "missing"
    """Not here; only what needs it cannot run."""
    BROKEN = "broken"
    """Keeps even the built-in model from running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: group of findings, such as "weights"; `run_check` fills it in.
        text: what was found, one line.
        command: what to run where something is missing; may be of several lines.
    """

    area: str = ""
    name: str
    mark: Mark
    text: str
    command: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """Return plain values."""
        return {**asdict(self), "mark": self.mark.value}


Check = Callable[[], list[Finding]]


def run_check(area: str, check: Check, *, otherwise: Mark) -> list[Finding]:
    """Run one check; what goes wrong inside it is a finding, not the end of the others.

    Args:
        otherwise: how a check that cannot be made stands.
    """
    try:
        return [replace(finding, area=area) for finding in check()]
    except Exception as error:  # noqa: BLE001 - a doctor reports whatever it meets
        return [Finding(area=area, name=area, mark=otherwise, text=f"{type(error).__name__}: {error}")]


def check_software() -> list[Finding]:
    """Compare what is installed with what this package asks for."""
    old = sys.version_info[:2] < OLDEST_PYTHON
    text = f"{platform.python_version()}{' (3.10 or newer is needed)' if old else ''}"
    findings = [Finding(name="python", mark=Mark.BROKEN if old else Mark.OK, text=text)]
    fine: list[str] = []
    for line in importlib.metadata.requires("ttsvar-ray") or []:
        match = _REQUIREMENT.match(line)
        if match is None:  # of an extra
            continue
        finding = _package(match["name"], match["version"])
        if finding is None:
            fine.append(f"{match['name']} {importlib.metadata.version(match['name'])}")
        else:
            findings.append(finding)
    shown = [entry for entry in fine if entry.split()[0] in ("torch", "transformers", "ray", "pyarrow")]
    text = f"{', '.join(shown)} and {len(fine) - len(shown)} others"
    findings.append(Finding(name="packages", mark=Mark.OK, text=text))
    for name, use in OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            text = f"not installed; needed for {use}"
            findings.append(Finding(name=name, mark=Mark.MISSING, text=text, command=f"pip install {name}"))
    return findings


def _package(name: str, least: str) -> Finding | None:
    """Return what is wrong with a required package, None where it is fine."""
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        text = f"not installed; {least} or newer is needed"
    else:
        if _numbers(found) >= _numbers(least):
            return None
        text = f"{found} is installed; {least} or newer is needed"
    return Finding(name=name, mark=Mark.BROKEN, text=text, command=f"pip install '{name}>={least}'")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def check_machine() -> list[Finding]:
    """Look at processors, memory and its limits, shared memory, and GPUs."""
    memory, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit()
    usable = memory if limit is None else min(memory, limit)
    text = bytes_text(memory)
    if limit is not None and limit < memory:
        text += f", of which this container may use {bytes_text(limit)}"
    quota = cpu_limit()
    cpus = f"{os.cpu_count()} CPUs"
    if quota is not None:
        cpus += f", of which this container may use {quota:g}"
    return [
        Finding(name="cpu", mark=Mark.OK, text=cpus),
        Finding(name="memory", mark=Mark.OK, text=text),
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
        text = f"{bytes_text(free)} free at {folder}"
        if not enough:
            text += f"; less than {bytes_text(LEAST_DISK_BYTES)} is soon full of images"
        findings.append(Finding(name=name, mark=Mark.OK if enough else Mark.WARN, text=text))
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


def _shared_memory(usable: float) -> Finding:
    folder = Path("/dev/shm")  # noqa: S108 - where Ray keeps its object store
    name = "shared memory"
    if not folder.is_dir():
        return Finding(name=name, mark=Mark.WARN, text=f"no {folder}; Ray will use the slow /tmp")
    size = shutil.disk_usage(folder).total
    wanted = OBJECT_STORE_SHARE * usable
    text = f"{bytes_text(size)} at {folder}"
    if size >= wanted:
        return Finding(name=name, mark=Mark.OK, text=text)
    text += f"; Ray wants {bytes_text(wanted)} for its object store and will use the slow /tmp: "
    return Finding(name=name, mark=Mark.WARN, text=f"{text}start the container with a larger --shm-size")


def _gpus() -> list[Finding]:
    import torch

    build = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        text = f"none that torch sees ({build}, {f'CUDA {built}' if built else 'built without CUDA'})"
        text += "; the built-in model runs on CPUs, the published ones want a GPU"
        return [Finding(name="gpu", mark=Mark.WARN, text=text)]
    findings = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        text = (
            f"{torch.cuda.get_device_properties(index).name}, {bytes_text(free)} of {bytes_text(total)} free "
            f"({build}, CUDA {torch.version.cuda})"
        )
        mark = Mark.OK if free > total / 2 else Mark.WARN
        findings.append(Finding(name=f"gpu {index}", mark=mark, text=text))
    return findings


def check_ray() -> list[Finding]:
    """Say which cluster a job would use, and whether it answers."""
    from ttsvar_ray.cluster.session import inspect_ray

    facts = inspect_ray()
    command = None
    if facts.address is None:
        text = "RAY_ADDRESS is not set: a job starts a cluster of this machine"
    elif facts.problem is None:
        text = f"RAY_ADDRESS {facts.address}"
    else:
        text = f"nothing answers at RAY_ADDRESS {facts.address} ({facts.problem}): jobs will not start"
        command = "ray start --head    # or: unset RAY_ADDRESS"
    return [
        Finding(
            name="cluster",
            mark=Mark.OK if command is None else Mark.WARN,
            text=f"ray {facts.version}; {text}",
            command=command,
        ),
        _authentication(facts.address, facts.auth_mode, facts.has_token_file),
    ]


def _authentication(address: str | None, mode: str | None, has_token: bool) -> Finding:
    """Ray turns tokens on by itself where it finds one; a process that differs from its cluster fails with
    messages that do not say so."""
    mark, command = Mark.OK, None
    if mode == "token" and not has_token:
        mark = Mark.WARN
        text = "RAY_AUTH_MODE=token, but there is no token: set RAY_AUTH_TOKEN or ~/.ray/auth_token"
    elif mode is not None:
        text = f"RAY_AUTH_MODE={mode}; every process of the cluster must have the same"
    elif has_token and address is not None:
        mark = Mark.WARN
        text = (
            "RAY_AUTH_MODE is not set and a token is here, so this machine uses it; a cluster that was "
            "started without one loses actors without saying why"
        )
        command = "export RAY_AUTH_MODE=disabled    # or token, the same everywhere"
    else:
        state = "a token is here and will be used" if has_token else "off"
        text = f"RAY_AUTH_MODE is not set: {state}"
    return Finding(name="authentication", mark=mark, text=text, command=command)


def check_built_in_model() -> list[Finding]:
    """Load the built-in model with its reward and draw one image on the CPU, without Ray."""
    from ttsvar_ray.config.load import load_config
    from ttsvar_ray.engine.local import search_prompt
    from ttsvar_ray.job.build import build_engine
    from ttsvar_ray.job.resolved import resolve
    from ttsvar_ray.results import PromptFailure
    from ttsvar_ray.types import Prompt

    started = time.monotonic()
    config = load_config(None, ["model.device=cpu", "strategy.name=raw"], needs_files=False)
    job = resolve(config)
    prompt = Prompt(row=0, prompt_id="doctor", ordinal=0, text="a red ring")
    result = search_prompt(prompt, plan=job.plan, engine=build_engine(job), run_seed=config.seed)
    if isinstance(result, PromptFailure):
        return [Finding(name="shapes", mark=Mark.BROKEN, text=result.errors[-1])]
    image = result.images[0].image
    text = f"drew {image.width}x{image.height} pixels in {time.monotonic() - started:.1f} s, loading included"
    return [Finding(name="shapes", mark=Mark.OK, text=text)]
