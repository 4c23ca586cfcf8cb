"""A lock as an object, where the storage cannot refuse to write over one.

Guarantee: a run that finds a living lock is refused. Two runs that start at the same moment both write the
lock, wait, and read it back: the one whose writing was last has it, the other is refused. If the storage
delays one of these writings for longer than that wait, both may go on, until the next sign of life of the
one that was written over: then it stops.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from ttsvar_ray.dataset.lock_file import FoundLock, owner_of, to_text
from ttsvar_ray.storage import Location

SETTLE_S = 3.0
"""How long a lock is watched after it was written."""


class AdvisoryLock:
    """The object holds the owner and a count of signs of life."""

    def __init__(self, location: Location, token: str, *, settle_s: float = SETTLE_S) -> None:
        self._location = location
        self._token = token
        self._settle_s = settle_s
        self._owner: Mapping[str, Any] = {}
        self._beats = 0

    def read(self) -> FoundLock | None:
        """Return the lock that is there."""
        try:
            text = self._location.read_bytes()
            written = self._location.modified()
        except FileNotFoundError:
            return None
        silence = 0.0 if written is None else self._now() - written
        return FoundLock(owner=owner_of(text), silence_s=silence, beat=text, version=text)

    def claim(self, owner: Mapping[str, Any], found: FoundLock | None) -> bool:
        """Write the lock unless it changed since it was found, wait, and see whose it is."""
        present = self.read()
        if (present.version if present else None) != (found.version if found else None):
            return False
        self._owner = owner
        self._write()
        time.sleep(self._settle_s)
        return self._is_ours()

    def beat(self) -> bool:
        """Write the lock again."""
        if not self._is_ours():
            return False
        self._beats += 1
        self._write()
        return True

    def release(self) -> None:
        """Delete the object."""
        if self._is_ours():
            self._location.delete()

    def _write(self) -> None:
        self._location.write_text(to_text({**self._owner, "beats": self._beats}, self._token))

    def _is_ours(self) -> bool:
        try:
            return owner_of(self._location.read_bytes()).get("token") == self._token
        except FileNotFoundError:
            return False

    def _now(self) -> float:
        """Return the time of a fresh object beside it: both are the server's."""
        probe = self._location.beside(f".probe.{uuid.uuid4().hex[:8]}.tmp")
        probe.write_text("")
        try:
            return probe.modified() or 0.0
        finally:
            probe.delete()
