"""Locks in one storage: a file of a file system, an object of a store that cannot refuse to write over one.

`FoundLock` is a lock that is there; `LockFile` is what `LocalLock`, `AdvisoryLock` and `s3_lock.S3Lock` do.
Who may take a lock is decided in `lock`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ttsvar_ray.errors import OutputError
from ttsvar_ray.storage.location import Location

SETTLE_S = 3.0
"""How long an advisory lock is watched after it was written."""

LOOK_AGAIN_S = (0.2, 1.0, 2.0)
"""Pauses before a lock that is absent is looked for again, where a store cannot replace it at once."""

_GUARD_LOOK_S = 0.02
_GUARD_WAIT_S = 1.0
"""How long to wait for another process that judges the same lock file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLock:
    """A lock that is there.

    Attributes:
        owner: who holds it, as far as it can be read.
        silence_s: seconds since its last sign of life, by the clock of the storage; 0 if that is not known.
        beat: changes with every sign of life.
        version: names this state of the lock for `claim`.
    """

    owner: Mapping[str, Any]
    silence_s: float
    beat: Any
    version: Any


class LockFile(Protocol):
    """A lock in one storage."""

    def read(self) -> FoundLock | None:
        """Return the lock that is there, whoever holds it."""
        ...

    def claim(self, owner: Mapping[str, Any], found: FoundLock | None) -> bool:
        """Take a lock that is free (None) or as it was found; False if somebody else was first."""
        ...

    def beat(self) -> bool:
        """Give a sign of life; False if the lock is another's now."""
        ...

    def release(self) -> None:
        """Remove the lock, if it is still held."""
        ...


def owner_of(text: bytes | str) -> dict[str, Any]:
    """Return the owner in a lock; an unreadable one (torn by a crash) has an unknown owner."""
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def read_lock(location: Location) -> bytes | None:
    """Return the content of a lock; None if there is none.

    In some stores it is away for a moment whenever its owner gives a sign of life: there it is read again.
    """
    for pause_s in (0.0,) if location.replaces_at_once else (0.0, *LOOK_AGAIN_S):
        # Not for no time at all: that, too, gives the processor away, and a lock is read before each rename.
        if pause_s:
            time.sleep(pause_s)
        with contextlib.suppress(FileNotFoundError):
            return location.read_bytes()
    return None


def to_text(owner: Mapping[str, Any], token: str) -> str:
    """Return the content of a lock."""
    return json.dumps({**owner, "token": token}) + "\n"


class LocalLock:
    """A file of this machine, or of a file system that several mount; a sign of life touches it.

    Guarantee: of any number of runs that reach for a free lock one gets it, as it is created exclusively
    (`O_EXCL`), which NFS knows, too. A lock that is taken over is judged and replaced under `flock` of the
    file itself, which NFS turns into a lock of its server. Where a file system has no `flock`, two runs that
    take over the same dead lock in the same instant may both have it until the first of them looks at it
    again, before its next rename. A symbolic link is never followed.
    """

    def __init__(self, path: Path, token: str) -> None:
        self._path = path
        self._token = token

    def read(self) -> FoundLock | None:
        """Return the lock that is there."""
        with self._opened() as descriptor:
            return None if descriptor is None else self._found(descriptor)

    def claim(self, owner: Mapping[str, Any], found: FoundLock | None) -> bool:
        """Create the file, or replace it under `flock` unless it changed since it was found."""
        content = to_text(owner, self._token).encode()
        if found is None:
            return _create(self._path, content)
        with self._guarded() as descriptor:
            if descriptor is None or self._found(descriptor).version != found.version:
                return False
            fresh = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex[:8]}.tmp")
            _create(fresh, content)
            try:
                fresh.replace(self._path)
            except FileNotFoundError:  # The owner lives, and has just tidied up.
                return False
        return True

    def beat(self) -> bool:
        """Touch the file."""
        with self._opened() as descriptor:
            if descriptor is None or not self._is_ours(descriptor):
                return False
            os.utime(descriptor)
        return True

    def release(self) -> None:
        """Remove the file, under `flock`: nobody can take it over in between."""
        with self._guarded() as descriptor:
            if descriptor is not None and self._is_ours(descriptor):
                self._path.unlink(missing_ok=True)

    def _found(self, descriptor: int) -> FoundLock:
        text, touched_ns = _content(descriptor), os.fstat(descriptor).st_mtime_ns
        return FoundLock(
            owner=owner_of(text),
            silence_s=self._now() - touched_ns / 1e9,
            beat=touched_ns,
            version=(text, touched_ns),
        )

    def _is_ours(self, descriptor: int) -> bool:
        return owner_of(_content(descriptor)).get("token") == self._token

    @contextlib.contextmanager
    def _opened(self, flags: int = os.O_RDONLY) -> Iterator[int | None]:
        """Open the file; None if there is none."""
        try:
            descriptor = os.open(self._path, flags | os.O_NOFOLLOW)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OutputError(f"{self._path}: expected a lock, got a symbolic link; remove it") from None
            raise
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[int | None]:
        """Open the file under `flock`; None if it is gone, replaced meanwhile, or not to be had."""
        with self._opened(os.O_RDWR) as descriptor:
            if descriptor is None or not _flock(descriptor):
                yield None
                return
            try:
                is_same = os.path.samestat(os.fstat(descriptor), self._path.lstat())
            except FileNotFoundError:
                is_same = False
            yield descriptor if is_same else None

    def _now(self) -> float:
        """Return the time of a fresh file beside it: on a network file system both are the server's."""
        try:
            # Where it needs a name for a moment, one that is tidied up after a crash.
            with tempfile.TemporaryFile(dir=self._path.parent, prefix=".probe.", suffix=".tmp") as probe:
                return os.fstat(probe.fileno()).st_mtime
        except OSError:  # No room for another file.
            return time.time()


def _create(path: Path, content: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, 1 << 16, 0)


def _flock(descriptor: int) -> bool:
    """Let no two processes judge the same lock; file systems without `flock` go without."""
    deadline = time.monotonic() + _GUARD_WAIT_S
    while (error := _try_flock(descriptor)) is not None and error.errno == errno.EWOULDBLOCK:
        if time.monotonic() > deadline:
            return False
        time.sleep(_GUARD_LOOK_S)
    return True


def _try_flock(descriptor: int) -> OSError | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None


class AdvisoryLock:
    """An object that holds the owner and a count of signs of life.

    Guarantee: a run that finds a living lock is refused. Two runs that start at the same moment both write
    the lock, wait, and read it back: the one whose writing was last has it, the other is refused. If the
    storage delays one of these writings for longer than that wait, both may go on, until the one that was
    written over looks at the lock again, before its next change: then it stops. A run that ends looks whose
    the lock is and then deletes it; one that took it over in between finds none, and stops, too.
    """

    def __init__(self, location: Location, token: str, *, settle_s: float = SETTLE_S) -> None:
        self._location = location
        self._token = token
        self._settle_s = settle_s
        self._owner: Mapping[str, Any] = {}
        self._beats = 0

    def read(self) -> FoundLock | None:
        """Return the lock that is there."""
        text = read_lock(self._location)
        if text is None:
            return None
        try:
            written = self._location.modified()
        except FileNotFoundError:
            written = None
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
        return owner_of(read_lock(self._location) or b"").get("token") == self._token

    def _now(self) -> float:
        """Return the time of a fresh object beside it: both are the server's."""
        probe = self._location.beside(f".probe.{uuid.uuid4().hex[:8]}.tmp")
        probe.write_text("")
        try:
            return probe.modified() or 0.0
        except FileNotFoundError:  # The owner of the output has just tidied up.
            return 0.0
        finally:
            probe.delete()
