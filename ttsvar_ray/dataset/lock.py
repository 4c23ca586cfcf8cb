"""One writer per output folder: a lock with an owner and a heartbeat.

The owner gives a sign of life every few seconds. A lock is taken over, with a message, when its owner is a
dead process of this machine, or when its heart has not beaten for a minute. Who wins when two runs reach for
the same lock is up to the storage: see `local_lock`, `s3_lock` and `advisory_lock`.
"""

from __future__ import annotations

import datetime
import logging
import os
import socket
import threading
import time
import uuid
from types import TracebackType

from ttsvar_ray.dataset.advisory_lock import AdvisoryLock
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.local_lock import LocalLock
from ttsvar_ray.dataset.lock_file import FoundLock, LockFile
from ttsvar_ray.dataset.s3_lock import S3Lock, has_s3_client
from ttsvar_ray.errors import OutputError, StorageError

logger = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
STALE_AFTER_S = 60.0

_WATCH_S = 0.5
"""Between two looks at a lock whose owner may be dead."""


class OutputLock:
    """Exclusive right to write to one output folder; a context manager.

    Args:
        layout: the output folder, created if it is not there.
        heartbeat_s: seconds between two signs of life.
        stale_after_s: seconds without one after which the owner counts as gone.
        lock_file: how to hold it; None is what the storage does best.
    """

    def __init__(
        self,
        layout: OutputLayout,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        stale_after_s: float = STALE_AFTER_S,
        lock_file: LockFile | None = None,
    ) -> None:
        self._layout = layout
        self._file = lock_file or _lock_file_of(layout)
        self._heartbeat_s = heartbeat_s
        self._stale_after_s = stale_after_s
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
        try:
            self._file.release()
        except (OSError, StorageError) as problem:
            # The run is over; what stays behind is a lock that goes stale.
            logger.warning("output lock of %s: not removed (%s)", self._layout.root, problem)

    def check(self) -> None:
        """Raise `OutputError` if another run took the folder over meanwhile."""
        if self._lost:
            raise OutputError(
                f"{self._layout.lock_file}: another run took this output folder over, because this one gave "
                f"no sign of life for {self._stale_after_s:.0f} s; this run stops"
            )

    def _acquire(self) -> None:
        """Take a free lock or that of a dead run; refuse a living one's.

        A run that was killed on another machine is told from a living one by waiting for its next sign of
        life, so that a job that is submitted again at once goes on by itself.
        """
        self._layout.root.make_folder()
        first: FoundLock | None = None
        started = time.monotonic()
        while True:
            found = self._file.read()
            reason = None if found is None else self._why_gone(found, time.monotonic() - started, first)
            if found is None or reason is not None:
                if self._file.claim(_owner(), found):
                    if found is not None:
                        logger.warning(
                            "output %s: taking over the lock of %s: %s",
                            self._layout.root,
                            _name(found),
                            reason,
                        )
                    return
                first, started = None, time.monotonic()
                continue
            if _lives_here(found) or (first is not None and found.beat != first.beat):
                self._refuse(found)
            if first is None:
                first = found
                logger.info(
                    "output %s: locked by %s; waiting for its next sign of life",
                    self._layout.root,
                    _name(found),
                )
            time.sleep(min(_WATCH_S, self._heartbeat_s / 4))

    def _why_gone(self, found: FoundLock, watched_s: float, first: FoundLock | None) -> str | None:
        if _died_here(found):
            return "that process is gone"
        silence = found.silence_s
        if first is not None and found.beat == first.beat:
            silence = max(silence, watched_s)
        return f"it gave no sign of life for {silence:.0f} s" if silence > self._stale_after_s else None

    def _refuse(self, found: FoundLock) -> None:
        raise OutputError(
            f"{self._layout.root}: another run is writing here ({_name(found)}; last sign of life "
            f"{max(found.silence_s, 0):.0f} s ago). Wait for it or choose another --output folder; if it is "
            f"gone, the same command works after {self._stale_after_s:.0f} s of silence."
        )

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_s) and not self._lost:
            self._beat_once()

    def _beat_once(self) -> None:
        try:
            self._lost = not self._file.beat()
        except (OSError, StorageError) as error:
            # A storage that stalls for a moment is not a reason to stop; a takeover is.
            logger.warning("output lock of %s: no heartbeat written (%s)", self._layout.root, error)


def _lock_file_of(layout: OutputLayout) -> LockFile:
    location = layout.lock_file
    token = uuid.uuid4().hex
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


def _owner() -> dict[str, object]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _name(found: FoundLock) -> str:
    owner = found.owner
    return f"process {owner.get('pid')} on {owner.get('host')}, started {owner.get('started')}"


def _died_here(found: FoundLock) -> bool:
    pid = found.owner.get("pid")
    return _is_of_this_host(found) and isinstance(pid, int) and not _is_alive(pid)


def _lives_here(found: FoundLock) -> bool:
    pid = found.owner.get("pid")
    return _is_of_this_host(found) and isinstance(pid, int) and _is_alive(pid)


def _is_of_this_host(found: FoundLock) -> bool:
    return found.owner.get("host") == socket.gethostname()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
