"""What a run writes about itself: `run.log`, and every ten seconds a line of `progress.jsonl`.

    logging ------> run.log           from the first word of the session on
    JobProgress --> progress.jsonl    {"time": ..., "state": "running", "prompts_done": 4711, ...}

`job.status` reads the last line, from any machine that sees the folder. Nothing here decides anything, and a
run does not end because one of the two cannot be written: it says so once.

An object store cannot append: there the ends of both files are written anew, in a thread of their own.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.errors import InterruptedRunError, LostLockError, StorageError
from ttsvar_ray.results import JobProgress
from ttsvar_ray.storage.location import Location
from ttsvar_ray.storage.uris import for_people

EVERY_SECONDS = 10.0
"""Between two lines of progress."""

STORED_EVERY_SECONDS = 30.0
"""Between two uploads to an object store."""

STORED_LINES = 2000
"""Of each file, kept on an object store: the last five hours of progress."""

BUFFERED_RECORDS = 1000
UPLOAD_TIMEOUT_SECONDS = 20.0
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"

logger = logging.getLogger(__name__)


def make_fit(record: logging.LogRecord) -> bool:
    """Let no control character and no secret of a URI into a log: what others wrote is logged, too."""
    record.msg, record.args = for_people(record.getMessage()), ()
    return True


class RunRecord:
    """The record of one session; a context manager around all of it.

    Args:
        log_file: another file for the log than `OUTPUT/run.log`.
        clock: seconds since the epoch.
    """

    def __init__(self, *, log_file: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._log_file = log_file
        self._clock = clock
        self._handler = _Handler()
        self._handler.addFilter(make_fit)
        self._progress: _Lines | None = None
        self._written_at = -math.inf
        self._last: JobProgress | None = None

    def __enter__(self) -> RunRecord:
        if self._log_file is not None:
            self._log_file.parent.mkdir(parents=True, exist_ok=True)
            self._handler.open(_Appended(self._log_file))
        logging.getLogger("ttsvar_ray").addHandler(self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_logging()

    @contextlib.contextmanager
    def session(self, layout: OutputLayout) -> Iterator[None]:
        """Write, from what was logged before to how the session ends; all of it while the lock is held."""
        self._progress = _lines_of(layout.progress_file)
        if self._log_file is None:
            self._handler.open(_lines_of(layout.log_file))
        self._write("starting", "")
        try:
            yield
        except LostLockError:  # another run has the folder
            self._progress = None
            logging.getLogger("ttsvar_ray").removeHandler(self._handler)
            raise
        except BaseException as error:
            reason = str(error) or type(error).__name__
            logger.info("the session ends: %s", reason)
            stopped = isinstance(error, (InterruptedRunError, KeyboardInterrupt))
            self._end("stopped" if stopped else "failed", reason)
            raise
        self._end("done", "")

    def _end(self, state: str, reason: str) -> None:
        assert self._progress is not None
        self._write(state, reason)
        self._stop_logging()
        self._progress.finish()

    def _stop_logging(self) -> None:
        logging.getLogger("ttsvar_ray").removeHandler(self._handler)
        self._handler.finish()

    def observe(self, state: JobProgress) -> None:
        """Take in where the run stands; to be called about once a second."""
        self._last = state
        if self._progress is not None and self._clock() - self._written_at >= EVERY_SECONDS:
            self._write("running", "")

    def _write(self, state: str, reason: str) -> None:
        assert self._progress is not None
        self._written_at = self._clock()
        values: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(self._written_at, datetime.timezone.utc).isoformat(
                timespec="seconds"
            ),
            "state": state,
            **({} if self._last is None else _numbers(self._last)),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        if reason:
            values["reason"] = for_people(reason)
        self._progress.add(json.dumps(values))


def _numbers(state: JobProgress) -> dict[str, Any]:
    """Return a state as JSON values; what is not known is None."""
    left = state.seconds_left
    return {
        "prompts_total": state.prompts_total,
        "prompts_done": state.prompts_resumed + state.prompts_done,
        "prompts_resumed": state.prompts_resumed,
        "failed": state.failed,
        "images": state.images,
        "images_per_second": round(state.images / state.seconds, 4) if state.seconds > 0 else None,
        "seconds_left": None if left is None else round(left),
        "mean_reward": None if math.isnan(state.mean_reward) else round(state.mean_reward, 6),
        "workers": state.workers,
        "workers_wanted": state.workers_wanted,
    }


class _Handler(logging.Handler):
    """Keeps records until there is a file for them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(LOG_FORMAT, datefmt=TIME_FORMAT))
        self._waiting: deque[str] = deque(maxlen=BUFFERED_RECORDS)
        self._lines: _Lines | None = None

    def open(self, lines: _Lines) -> None:
        self._lines = lines
        while self._waiting:
            lines.add(self._waiting.popleft())

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if self._lines is None:
            self._waiting.append(line)
        elif record.name != __name__ or record.levelno < logging.WARNING:
            self._lines.add(line)

    def finish(self) -> None:
        if self._lines is not None:
            self._lines.finish()


class _Lines:
    """A text file that grows."""

    def add(self, line: str) -> None:
        """Append a line."""
        raise NotImplementedError

    def finish(self) -> None:
        """Have everything written."""


def _lines_of(file: Location) -> _Lines:
    return _Stored(file) if file.local_path is None else _Appended(file.local_path)


class _Appended(_Lines):
    """On a file system."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_broken = False

    def add(self, line: str) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            if not self._is_broken:
                self._is_broken = True
                logger.warning("%s cannot be written (%s); the run goes on", self._path, error)


class _Stored(_Lines):
    """In an object store: the last lines, written anew by a thread now and then."""

    def __init__(self, file: Location) -> None:
        self._file = file
        self._lines: deque[str] = deque(_existing(file), maxlen=STORED_LINES)
        self._thread: threading.Thread | None = None
        self._due_at = -math.inf
        self._is_dirty = False

    def add(self, line: str) -> None:
        self._lines.append(line)
        self._is_dirty = True
        if time.monotonic() >= self._due_at and (self._thread is None or not self._thread.is_alive()):
            self._upload()

    def finish(self) -> None:
        if self._thread is not None:
            self._thread.join(UPLOAD_TIMEOUT_SECONDS)
        if self._is_dirty:
            self._upload()
            assert self._thread is not None
            self._thread.join(UPLOAD_TIMEOUT_SECONDS)

    def _upload(self) -> None:
        self._due_at = time.monotonic() + STORED_EVERY_SECONDS
        self._is_dirty = False
        text = "".join(f"{line}\n" for line in self._lines)
        self._thread = threading.Thread(target=self._put, args=(text,), daemon=True)
        self._thread.start()

    def _put(self, text: str) -> None:
        try:
            self._file.write_text(text)
        except LostLockError:  # the run hears of it where it writes its parts
            return
        except (StorageError, OSError) as error:
            logger.warning("%s cannot be written (%s); the run goes on", self._file, error)


def _existing(file: Location) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, StorageError):
        return []
