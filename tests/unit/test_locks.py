"""The two lock files name the same versions, and the one with hashes has one for each."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PINNED = re.compile(r"^([\w.-]+)==([^\s;]+)(?: ; ([^\\\n]+?))?(?: \\)?$", re.MULTILINE)
GPU_ONLY = re.compile(r"nvidia-|cuda-|triton$")


def pins(name: str) -> dict[tuple[str, str], str]:
    """Return the version of each package under each marker."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return {(package, marker): version for package, version, marker in PINNED.findall(text)}


def versions(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for (package, _), version in pins(name).items():
        found.setdefault(package, set()).add(version)
    return found


def test_both_locks_agree() -> None:
    plain, hashed = versions("requirements.lock"), versions("requirements.hashes.lock")
    assert {"torch", "ray", "transformers", "pyarrow", "numpy", "boto3"} <= hashed.keys() & plain.keys()
    shared = {package for package in hashed if not GPU_ONLY.match(package)}
    assert {package: hashed[package] for package in shared} == {package: plain[package] for package in shared}


def test_every_entry_has_a_hash_of_a_file() -> None:
    text = (ROOT / "requirements.hashes.lock").read_text(encoding="utf-8")
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE | re.IGNORECASE)[1:]
    assert len(entries) == len(pins("requirements.hashes.lock"))
    assert [one.split()[0] for one in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", one)] == []
    assert "://" not in text
