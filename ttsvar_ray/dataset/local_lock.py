"""A lock as a file, on this machine or on a file system that several mount.

Guarantee: with `flock`, which Linux has on local disks and NFS, no two runs take the same lock. Where the
file system has none, two runs that start within the same instant may both take it; each finds out at its
next sign of life who wrote last, and the other stops.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ttsvar_ray.dataset.lock_file import FoundLock, owner_of, to_text


class LocalLock:
    """The file holds the owner; a sign of life touches it."""

    def __init__(self, path: Path, token: str) -> None:
        self._path = path
        self._token = token

    def read(self) -> FoundLock | None:
        """Return the lock that is there."""
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
            touched_ns = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        return FoundLock(
            owner=owner_of(text),
            silence_s=self._now() - touched_ns / 1e9,
            beat=touched_ns,
            version=(text, touched_ns),
        )

    def claim(self, owner: Mapping[str, Any], found: FoundLock | None) -> bool:
        """Take the lock unless it changed since it was found."""
        with _one_at_a_time(self._path.parent):
            present = self.read()
            if (present.version if present else None) != (found.version if found else None):
                return False
            self._path.write_text(to_text(owner, self._token), encoding="utf-8")
        return True

    def beat(self) -> bool:
        """Touch the file."""
        if not self._is_ours():
            return False
        os.utime(self._path)
        return True

    def release(self) -> None:
        """Remove the file."""
        if self._is_ours():
            self._path.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        found = self.read()
        return found is not None and found.owner.get("token") == self._token

    def _now(self) -> float:
        """Return the time of a fresh file beside it: on a network file system both are the server's."""
        probe = self._path.with_name(f".probe.{uuid.uuid4().hex[:8]}.tmp")
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let no two processes judge the same lock; file systems without flock go without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
