"""Files of this machine, or of a file system that is mounted on it."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

_LEFTOVERS = ".*.tmp"


@dataclass(frozen=True, slots=True)
class LocalStore:
    """Paths of a POSIX file system."""

    @property
    def is_local(self) -> bool:
        """Whether paths are paths of this machine."""
        return True

    def show(self, path: str) -> str:
        """Return a path for people."""
        return path

    def uri(self, path: str) -> str:
        """Return what `locate` makes this path of."""
        return path

    def open(self, path: str) -> BinaryIO:
        """Open a file for buffered reading."""
        return Path(path).open("rb")

    def open_arrow(self, path: str) -> Any:
        """Open a file for pyarrow, with random access."""
        return pa.OSFile(path, "rb")

    def size(self, path: str) -> int | None:
        """Return the bytes of a file; None if there is none."""
        try:
            return Path(path).stat().st_size if not Path(path).is_dir() else None
        except (FileNotFoundError, NotADirectoryError):
            return None

    def modified(self, path: str) -> float | None:
        """Return when a file was written, in seconds."""
        return Path(path).stat().st_mtime

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder."""
        return Path(path).is_dir()

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, ascending; none if it is not there."""
        try:
            return sorted(os.listdir(path))  # noqa: PTH208 - names alone, where a Path each would weigh more
        except FileNotFoundError:
            return []

    def make_folder(self, path: str) -> None:
        """Create a folder and those above it."""
        Path(path).mkdir(parents=True, exist_ok=True)

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""
        Path(path).unlink(missing_ok=True)

    def remove_leftovers(self, path: str) -> None:
        """Remove the temporary files that a killed process left in a folder."""
        for leftover in Path(path).glob(_LEFTOVERS):
            leftover.unlink(missing_ok=True)

    @contextlib.contextmanager
    def replacing(self, path: str) -> Iterator[Path]:
        """Yield a temporary path beside `path`; on success it is flushed to disk and renamed to `path`.

        The temporary name begins with a dot, which readers of data sets skip. On an error it is removed.
        """
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            yield temporary
            _flush(temporary)
            temporary.replace(final)
            _flush(final.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
