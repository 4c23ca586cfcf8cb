"""Files behind a pyarrow file system: object stores, and what fsspec reaches.

A stream of pyarrow or fsspec publishes what was written so far when it is closed, and it is closed by every
exception and by the garbage collector. So nothing is ever written to one bit by bit: a file is made whole on
this machine first, and then handed over by one call: what may be published after it is the whole.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.fs as pafs

from ttsvar_ray.errors import StorageError
from ttsvar_ray.storage.uris import scheme_of, split_query, without_secrets

_ARROW_SCHEMES = frozenset({"abfs", "abfss", "gcs", "gs", "hdfs", "s3", "viewfs"})

_VISIBLE_WHEN_CLOSED = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "hf", "memory", "oss", "s3"})
"""Stores where an object is not there until its last byte is; elsewhere a temporary name is needed."""

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteStore:
    """Paths of one pyarrow file system.

    Attributes:
        filesystem: native, or fsspec behind `pyarrow.fs.FSSpecHandler`.
        base_uri, base_path: one place, by both its names; with it any path below it has a URI.
        query: of the URI, with its question mark.
        fsspec: the fsspec file system, if it is one.
    """

    filesystem: Any
    base_uri: str
    base_path: str
    query: str
    fsspec: Any = None

    @property
    def is_local(self) -> bool:
        """Whether paths are paths of this machine."""
        return False

    def show(self, path: str) -> str:
        """Return the URI of a path for people: without secrets."""
        return without_secrets(self.uri(path)).partition("?")[0]

    def uri(self, path: str) -> str:
        """Return the URI of a path at or below the base, with whatever secrets it was given with."""
        assert path == self.base_path or path.startswith(f"{self.base_path}/"), "not below the base"
        return f"{self.base_uri}{path.removeprefix(self.base_path)}{self.query}"

    def open(self, path: str) -> BinaryIO:
        """Open a file for buffered reading."""
        return cast(BinaryIO, io.BufferedReader(self.open_arrow(path), _BUFFER_BYTES))

    def open_arrow(self, path: str) -> Any:
        """Open a file for pyarrow, with random access."""
        with self._told(path):
            return self.filesystem.open_input_file(path)

    def size(self, path: str) -> int | None:
        """Return the bytes of a file; None if there is none."""
        with self._told(path):
            info = self.filesystem.get_file_info(path)
        return int(info.size) if info.type == pafs.FileType.File else None

    def modified(self, path: str) -> float | None:
        """Return when a file was written, in seconds by the store's clock; None if it does not tell."""
        with self._told(path):
            info = self.filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError(self.show(path))
        return None if info.mtime_ns is None else info.mtime_ns / 1e9

    def is_folder(self, path: str) -> bool:
        """Whether there is something below this path."""
        with self._told(path):
            return bool(self.filesystem.get_file_info(path).type == pafs.FileType.Directory)

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, ascending; none if it is not there."""
        with self._told(path):
            found = self.filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def make_folder(self, path: str) -> None:
        """Do nothing: a folder is there as soon as something is in it."""

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""
        with self._told(path), contextlib.suppress(FileNotFoundError):
            if self.fsspec is not None:
                self.fsspec.rm_file(path)
            else:
                self.filesystem.delete_file(path)

    def remove_leftovers(self, path: str) -> None:
        """Remove the temporary files that a killed process left in a folder."""
        for name in self.names(path):
            if name.startswith(".") and name.endswith(".tmp"):
                self.delete(f"{path}/{name}")

    @contextlib.contextmanager
    def replacing(self, path: str) -> Iterator[Path]:
        """Yield a path of this machine; on success its content is published under `path`, at once."""
        with tempfile.TemporaryDirectory(prefix="ttsvar-upload-") as folder:
            staged = Path(folder) / "staged"
            yield staged
            with self._told(path):
                self._publish(staged, path)

    def _publish(self, staged: Path, path: str) -> None:
        if scheme_of(self.base_uri) in _VISIBLE_WHEN_CLOSED:
            self._upload(staged, path)
            return
        folder, _, name = path.rpartition("/")
        self.filesystem.create_dir(folder, recursive=True)
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        self._upload(staged, temporary)
        # Some of these file systems do not rename over a file.
        self.delete(path)
        self.filesystem.move(temporary, path)

    def _upload(self, staged: Path, path: str) -> None:
        if self.fsspec is None:
            self._write_at_once(staged, path)
            return
        before = self.size(path)
        try:
            self.fsspec.put_file(str(staged), path)
        except BaseException:
            self._remove_if_torn(path, whole_sizes=(None, before, staged.stat().st_size))
            raise

    def _write_at_once(self, staged: Path, path: str) -> None:
        # Not `pyarrow.fs.copy_files`: it leaves closing to a destructor, which ignores that an upload failed.
        with contextlib.ExitStack() as stack:
            content: Any = b""
            if staged.stat().st_size:
                content = stack.enter_context(pa.memory_map(str(staged))).read_buffer()
            stream = self.filesystem.open_output_stream(path)
            stream.write(content)
            stream.close()

    def _remove_if_torn(self, path: str, *, whole_sizes: tuple[int | None, ...]) -> None:
        """Remove what a failed copy published; an error on the way must not hide the first one."""
        with contextlib.suppress(OSError, StorageError):
            if self.size(path) not in whole_sizes:
                self.delete(path)

    @contextlib.contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """Say where an error of the store happened; a file that is absent stays `FileNotFoundError`."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise StorageError(f"{self.show(path)}: the storage refused or failed ({reason})") from error


def open_remote(uri: str) -> tuple[RemoteStore, str]:
    """Return the store of a URI and the path in it.

    Credentials and endpoints come from the environment or from the URI, as pyarrow and fsspec take them.

    Raises:
        StorageError: an unknown scheme, a missing package, a URI that cannot be read.
    """
    base, query = split_query(uri)
    scheme = scheme_of(uri)
    if base.endswith(":"):
        raise StorageError(f"{scheme}://: expected a path after the scheme, got none")
    try:
        if scheme in _ARROW_SCHEMES:
            filesystem, path = pafs.FileSystem.from_uri(base + query)
            inner = None
        else:
            import fsspec

            inner, path = fsspec.core.url_to_fs(base + query)
            filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(inner))
    except (ValueError, ImportError, OSError, pa.ArrowException) as error:
        # The message of a parser quotes the URI, credentials and all.
        reason = str(error).replace(base + query, without_secrets(uri))
        raise StorageError(
            f"{without_secrets(uri)}: expected a local path or the URI of a storage that pyarrow or fsspec "
            f"can open here, got {scheme}:// ({reason.splitlines()[0] if reason else type(error).__name__})"
        ) from None
    path = path.rstrip("/")
    return RemoteStore(filesystem=filesystem, base_uri=base, base_path=path, query=query, fsspec=inner), path
