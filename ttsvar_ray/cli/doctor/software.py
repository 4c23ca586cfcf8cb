"""Python and the packages."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import re
import sys

from ttsvar_ray.cli.doctor.finding import Finding, Mark

AREA = "software"
OLDEST_PYTHON = (3, 10)
OPTIONAL = {"ftfy": "HPS and CLIP rewards", "matplotlib": "plots of simulations"}
"""Packages that only some parts need, and which."""

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*>=\s*(?P<version>[\d.]+)\s*$")


def check_software() -> list[Finding]:
    """Compare what is installed with what this package asks for."""
    version = platform.python_version()
    old = sys.version_info[:2] < OLDEST_PYTHON
    findings = [
        Finding(
            area=AREA,
            name="python",
            mark=Mark.BROKEN if old else Mark.OK,
            text=f"{version}{' (3.10 or newer is needed)' if old else ''}",
        )
    ]
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
    findings.append(Finding(area=AREA, name="packages", mark=Mark.OK, text=text))
    for name, use in OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            findings.append(
                Finding(
                    area=AREA,
                    name=name,
                    mark=Mark.MISSING,
                    text=f"not installed; needed for {use}",
                    command=f"pip install {name}",
                )
            )
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
    command = f"pip install '{name}>={least}'"
    return Finding(area=AREA, name=name, mark=Mark.BROKEN, text=text, command=command)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
