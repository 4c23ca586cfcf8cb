"""One writer per output folder: a lock with an owner and a heartbeat.

    owner    gives a sign of life every 10 s; stops by itself when none succeeded for 40 s
    others   take the lock over when its owner's process is gone from here, or silent for 60 s
    sink     looks whose the lock is right before each rename, put or deletion (`guarded`)

So an owner stops before another may take over, and one that slept through both changes no file afterwards.
Who wins when two runs reach for the same lock is up to the storage: see `lock_files` and `s3_lock`.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.lock_files import AdvisoryLock, FoundLock, LocalLock, LockFile, owner_of, read_lock
from ttsvar_ray.dataset.s3_lock import S3Lock, has_s3_client
from ttsvar_ray.errors import LostLockError, OutputError, StorageError
from ttsvar_ray.storage.location import Location

logger = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
STOP_AFTER_S = 40.0
STALE_AFTER_S = 60.0

_WATCH_S = 0.5
"""Between two looks at a lock whose owner may be dead."""

_AGAIN_S = 0.05
"""After another run was first."""

_JOIN_S = 20.0
"""How long the end of a run waits for a sign of life that is on its way."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


class OutputLock:
    """Exclusive right to write to one output folder; a context manager.

    Args:
        layout: the output folder, created if it is not there.
        heartbeat_s: seconds between two signs of life.
        stop_after_s: seconds since the last one that succeeded after which the owner stops.
        stale_after_s: seconds without one after which others count the owner as gone.
    """

    def __init__(
        self,
        layout: OutputLayout,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        stop_after_s: float = STOP_AFTER_S,
        stale_after_s: float = STALE_AFTER_S,
    ) -> None:
        self.token = uuid.uuid4().hex
        self._layout = layout
        self._file = lock_file_of(layout, self.token)
        self._heartbeat_s = heartbeat_s
        self._stop_after_s = stop_after_s
        self._stale_after_s = stale_after_s
        self._stop = threading.Event()
        self._lost = False
        self._alive_at = 0.0
        self._thread = threading.Thread(target=self._beat, name="output-lock", daemon=True)

    def __enter__(self) -> OutputLock:
        try:
            self._acquire()
        except OSError as error:
            raise OutputError(
                f"{self._layout.root}: expected a folder that can be written to ({error}); choose another "
                "--output folder, or mend this one"
            ) from error
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(_JOIN_S)
        try:
            self._file.release()
        except (OSError, StorageError) as problem:
            # The run is over; what stays behind is a lock that goes stale.
            logger.warning("output lock of %s: not removed (%s)", self._layout.root, problem)

    @property
    def layout(self) -> OutputLayout:
        """The output folder, to be changed only while this lock is held."""
        return guarded(self._layout, self.token)

    def check(self) -> None:
        """Raise `LostLockError` if another run took the folder over meanwhile, or may have."""
        if self._lost:
            raise _lost(self._layout.lock_file, read_lock(self._layout.lock_file))
        silence = _now() - self._alive_at
        if silence > self._stop_after_s:
            raise LostLockError(
                f"{self._layout.lock_file}: no sign of life could be written for {silence:.0f} s, and after "
                f"{self._stale_after_s:.0f} s another run may take this output folder over; this run stops, "
                "and the same command goes on"
            )

    def _acquire(self) -> None:
        """Take a free lock or that of a dead run; refuse a living one's.

        A run that was killed on another machine is told from a living one by waiting for its next sign of
        life, so that a job that is submitted again at once goes on by itself.
        """
        self._layout.root.make_folder()
        first: FoundLock | None = None
        since = 0.0
        while True:
            found = self._file.read()
            reason = None
            if found is not None:
                alive = is_alive(found.owner)
                if (first is not None and found.beat != first.beat) or (
                    alive and found.silence_s <= self._stale_after_s
                ):
                    self._refuse(found)
                if first is None:
                    since = time.monotonic()
                reason = self._why_gone(found, alive, time.monotonic() - since)
                if reason is None:
                    if first is None:
                        logger.info(
                            "output %s: locked by %s; waiting for its next sign of life",
                            self._layout.root,
                            _name(found),
                        )
                    first = found
                    time.sleep(min(_WATCH_S, self._heartbeat_s / 4))
                    continue
            asked_at = _now()
            if self._file.claim(this_process(), found):
                self._alive_at = asked_at
                if found is not None:
                    logger.warning(
                        "output %s: taking over the lock of %s: %s", self._layout.root, _name(found), reason
                    )
                return
            first = None
            time.sleep(_AGAIN_S)

    def _why_gone(self, found: FoundLock, alive: bool | None, watched_s: float) -> str | None:
        if alive is False:
            return "that process is gone"
        # Of a process that lives only silence that was watched counts: a clock may have been set.
        silence = watched_s if alive else max(found.silence_s, watched_s)
        return f"it gave no sign of life for {silence:.0f} s" if silence > self._stale_after_s else None

    def _refuse(self, found: FoundLock) -> None:
        raise OutputError(
            f"{self._layout.root}: another run is writing here ({_name(found)}; last sign of life "
            f"{max(found.silence_s, 0):.0f} s ago). Wait for it or choose another --output folder; if it is "
            f"gone, the same command works after {self._stale_after_s:.0f} s of silence."
        )

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_s) and not self._lost:
            asked_at = _now()
            try:
                self._lost = not self._file.beat()
            except Exception as error:  # noqa: BLE001 - whatever it is, `check` counts the time without a beat
                logger.warning("output lock of %s: no heartbeat written (%s)", self._layout.root, error)
            else:
                self._alive_at = asked_at


def guarded(layout: OutputLayout, token: str) -> OutputLayout:
    """Return an output folder whose files change only while a lock is held.

    Right before each rename, put and deletion it reads the lock, and raises `LostLockError` if it has another
    token than the given one. What is left is the time between that look and the change itself.
    """
    lock_file = layout.lock_file

    def look() -> None:
        found = read_lock(lock_file)
        if owner_of(found or b"").get("token") != token:
            raise _lost(lock_file, found)

    return OutputLayout(dataclasses.replace(layout.root, before_change=look))


def _lost(lock_file: Location, found: bytes | None) -> LostLockError:
    how = "another run took this output folder over" if found else "somebody removed it, or its whole folder"
    return LostLockError(f"{lock_file}: {how}; this run changes nothing there now")


def lock_file_of(layout: OutputLayout, token: str) -> LockFile:
    """Return the best lock that the storage of an output folder can hold."""
    location = layout.lock_file
    if location.local_path is not None:
        return LocalLock(location.local_path, token)
    if location.scheme == "s3":
        if has_s3_client():
            return S3Lock(location, token)
        logger.warning(
            "output %s: the lock is advisory without boto3; pip install 'ttsvar-ray[s3]' makes it strict",
            layout.root,
        )
    return AdvisoryLock(location, token)


def this_process() -> dict[str, Any]:
    """Return what names this process among those of all machines, containers and times."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "boot": _BOOT.read_text().strip() if _BOOT.exists() else None,
        "pid_namespace": _PID_NAMESPACE.stat().st_ino if _PID_NAMESPACE.exists() else None,
        "process_started": _started(os.getpid()),
    }


def is_alive(owner: Mapping[str, Any]) -> bool | None:
    """Return whether the process of an owner lives; None if it cannot be seen from here.

    Host names and process numbers are not enough: containers share the first and repeat the second.
    """
    here, pid = this_process(), owner.get("pid")
    seen = all(here[name] is not None and owner.get(name) == here[name] for name in ("boot", "pid_namespace"))
    if not seen or not isinstance(pid, int):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    started = _started(pid)
    return started is None or started == owner.get("process_started")


def _started(pid: int) -> int | None:
    """Return when a process was started, in ticks since the machine was; None if that is not told."""
    try:
        # The name of the program, in parentheses, may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _now() -> float:
    """Return seconds that also pass while this machine is suspended, where such a clock is."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _name(found: FoundLock) -> str:
    owner = found.owner
    return f"process {owner.get('pid')} on {owner.get('host')}, started {owner.get('started')}"
