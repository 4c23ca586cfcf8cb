"""One writer per output folder: a lock file with an owner and a heartbeat.

The owner touches the file every few seconds. A lock is taken over when its owner is a dead process
of this machine, or when its heart has not beaten for a minute.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.errors import OutputError

logger = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
STALE_AFTER_S = 60.0


class OutputLock:
    """Exclusive right to write to one output folder; a context manager.

    Args:
        layout: the output folder, created if it is not there.
        heartbeat_s: seconds between two signs of life.
        stale_after_s: seconds without one after which the owner counts as gone.
    """

    def __init__(
        self,
        layout: OutputLayout,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        stale_after_s: float = STALE_AFTER_S,
    ) -> None:
        self._layout = layout
        self._path = layout.lock_file
        self._heartbeat_s = heartbeat_s
        self._stale_after_s = stale_after_s
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._beat, name="output-lock", daemon=True)

    def __enter__(self) -> OutputLock:
        self._acquire()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_ours():
            self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise `OutputError` if another run took the folder over meanwhile."""
        if self._lost:
            raise OutputError(
                f"{self._path}: another run took this output folder over, because this one gave no sign of "
                f"life for {self._stale_after_s:.0f} s; this run stops"
            )

    def _acquire(self) -> None:
        self._layout.root.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(self._layout.root):
            owner = _read(self._path)
            if owner is not None:
                self._take_over_or_refuse(owner)
            self._path.write_text(json.dumps(self._owner()) + "\n", encoding="utf-8")

    def _take_over_or_refuse(self, owner: dict[str, Any]) -> None:
        name = f"process {owner.get('pid')} on {owner.get('host')}, started {owner.get('started')}"
        silence = _seconds_since_touched(self._path)
        if _died_here(owner):
            reason = "that process is gone"
        elif silence > self._stale_after_s:
            reason = f"it gave no sign of life for {silence:.0f} s"
        else:
            raise OutputError(
                f"{self._layout.root}: another run is writing here ({name}; last sign of life "
                f"{silence:.0f} s ago). Wait for it or choose another --output folder; if it is gone, "
                f"the same command works after {self._stale_after_s:.0f} s of silence."
            )
        logger.warning("output %s: taking over the lock of %s: %s", self._layout.root, name, reason)

    def _owner(self) -> dict[str, Any]:
        return {
            "token": self._token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }

    def _is_ours(self) -> bool:
        owner = _read(self._path)
        return owner is not None and owner.get("token") == self._token

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_s) and not self._lost:
            self._touch()

    def _touch(self) -> None:
        try:
            self._lost = not self._is_ours()
            if not self._lost:
                os.utime(self._path)
        except OSError as error:
            # A file system that stalls for a moment is not a reason to stop; a takeover is.
            logger.warning("output lock %s: no heartbeat written (%s)", self._path, error)


def _read(path: Path) -> dict[str, Any] | None:
    """Return the owner in a lock file; an unreadable one (torn by a crash) has an unknown owner."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _died_here(owner: dict[str, Any]) -> bool:
    pid = owner.get("pid")
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _seconds_since_touched(path: Path) -> float:
    """Compare with a fresh file beside it: on a network file system both times are the server's."""
    probe = path.with_name(f".probe.{uuid.uuid4().hex[:8]}.tmp")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink()


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let no two processes judge the same stale lock; file systems without flock go without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
