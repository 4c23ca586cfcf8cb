"""One place, a file or folder of this machine or of an object store, behind a pyarrow file system.

A stream of pyarrow or fsspec publishes what was written so far when it is closed, and it is closed by every
exception and by the garbage collector. So nothing is ever written to a store bit by bit: a file is made whole
on this machine first, and then handed over by one call. What may be published after it is the whole.

The functions at the end of this file are the only ones that change a storage: a process that is killed is
killed before or after one of them, and what is there then is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from ttsvar_ray.errors import StorageError, TtsVarError
from ttsvar_ray.storage.uris import is_uri, scheme_of, scrubbed, secret_pieces, split_query, without_secrets

_ARROW_SCHEMES = frozenset({"abfs", "abfss", "gcs", "gs", "hdfs", "s3", "viewfs"})

_VISIBLE_WHEN_CLOSED = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "hf", "memory", "oss", "s3"})
"""Stores where an object is not there until its last byte is; elsewhere a temporary name is needed."""

_TEMPORARY = ".tmp"
_KEPT = ".kept"
"""End of the name of a file that is being replaced, where a store may not rename over a file."""

_BUFFER_BYTES = 1 << 20

_ENVIRONMENT = ("AWS_", "AZURE_", "FSSPEC_", "GOOGLE_")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Location:
    """A path in a file system. As text it has no secrets; `uri` may.

    Attributes:
        path: as the file system takes it, with slashes.
        filesystem: of pyarrow.
        fsspec: the fsspec file system behind it, if it is one.
        base_uri, base_path: one place by both its names, so that any path below it has a URI; empty on this
            machine.
        query: of the URI, with its question mark.
        before_change: called right before each rename, put and deletion here and below; what it raises
            prevents them.
    """

    path: str
    filesystem: Any
    fsspec: Any = None
    base_uri: str = ""
    base_path: str = ""
    query: str = ""
    before_change: Callable[[], None] = field(default=lambda: None, compare=False)

    def __str__(self) -> str:
        return self.path if self.is_local else without_secrets(self.uri).partition("?")[0]

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"

    def __truediv__(self, name: str) -> Location:
        return dataclasses.replace(self, path=f"{self.path}/{name}")

    @property
    def is_local(self) -> bool:
        """Whether the path is one of this machine."""
        return not self.base_uri

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on."""
        return PurePosixPath(self.path if self.is_local else self.path.partition("?")[0]).suffix

    @property
    def scheme(self) -> str:
        """The scheme of the storage in lower case, `file` for this machine."""
        return "file" if self.is_local else scheme_of(self.base_uri)

    @property
    def local_path(self) -> Path | None:
        """The path on this machine, if it is one."""
        if not self.is_local:
            return None
        # pyarrow takes a relative path such as `run:1/data` for a URI.
        return Path(self.path).absolute() if ":" in self.path else Path(self.path)

    @property
    def replaces_at_once(self) -> bool:
        """Whether a file is there at every moment while it is replaced."""
        return self.is_local or self.scheme in _VISIBLE_WHEN_CLOSED

    @property
    def uri(self) -> str:
        """What `locate` makes this location of, in another process too. May hold secrets: never log it."""
        if self.is_local:
            return self.path
        assert self.path == self.base_path or self.path.startswith(f"{self.base_path}/"), "not below the base"
        return f"{self.base_uri}{self.path.removeprefix(self.base_path)}{self.query}"

    def neighbour(self, ending: str) -> Location:
        """Return the place beside this one whose name is longer by `ending`."""
        if self.is_local:
            return dataclasses.replace(self, path=f"{self.path}{ending}")
        base, query = split_query(self.uri)
        return locate(f"{base}{ending}{query}")

    def beside(self, name: str) -> Location:
        """Return the place of another name in the same folder."""
        folder, slash, _ = self.path.rpartition("/")
        return dataclasses.replace(self, path=f"{folder}{slash}{name}")

    def open(self) -> BinaryIO:
        """Open for buffered reading of bytes; FileNotFoundError if it is not there."""
        if self.is_local:
            return Path(self.path).open("rb")
        return cast(BinaryIO, io.BufferedReader(self.open_arrow(), _BUFFER_BYTES))

    def open_arrow(self) -> Any:
        """Open for pyarrow, with random access; FileNotFoundError if it is not there."""
        self._forget_listings()
        with self._named_errors():
            return self.filesystem.open_input_file(self._place)

    def read_bytes(self) -> bytes:
        """Return the whole content; FileNotFoundError if it is not there."""
        with self.open() as file:
            return file.read()

    def read_text(self) -> str:
        """Return the whole content, which is UTF-8; FileNotFoundError if it is not there."""
        return self.read_bytes().decode()

    def size(self) -> int | None:
        """Return the bytes of the file; None if there is none."""
        info = self._info()
        return None if info.type in (pafs.FileType.NotFound, pafs.FileType.Directory) else int(info.size or 0)

    def modified(self) -> float | None:
        """Return when the file was written, in seconds by the storage's clock; None if it does not tell.

        FileNotFoundError if it is not there.
        """
        info = self._info()
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError(str(self))
        return None if info.mtime_ns is None else info.mtime_ns / 1e9

    def is_file(self) -> bool:
        """Whether there is a file."""
        return self.size() is not None

    def is_folder(self) -> bool:
        """Whether there is a folder, or something below this path."""
        return bool(self._info().type == pafs.FileType.Directory)

    def names(self) -> list[str]:
        """Return the names in this folder, ascending; none if it is not there."""
        if self.is_local:
            try:
                return sorted(os.listdir(self.path))  # noqa: PTH208 - names alone; a Path each would weigh more
            except (FileNotFoundError, NotADirectoryError):
                return []
        found = self.listed(pafs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def listed(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """Return what a selector below this path finds, as pyarrow says it."""
        self._forget_listings()
        with self._named_errors():
            return list(self.filesystem.get_file_info(selector))

    def make_folder(self) -> None:
        """Create this folder and those above it, where folders are things."""
        if self.is_local:
            Path(self.path).mkdir(parents=True, exist_ok=True)

    def remove_empty_folder(self) -> None:
        """Remove this folder if it is there and empty, where folders are things."""
        if self.is_local:
            with contextlib.suppress(OSError):
                Path(self.path).rmdir()

    def delete(self) -> None:
        """Delete the file, if it is there."""
        self.before_change()
        with self._named_errors(), contextlib.suppress(FileNotFoundError):
            _remove(self)

    def remove_leftovers(self) -> None:
        """Remove what a killed process left in this folder, or finish what it began; only under a lock."""
        for name in self.names():
            if not name.startswith("."):
                continue
            if name.endswith(_TEMPORARY):
                (self / name).delete()
            elif name.endswith(_KEPT) and not self.is_local:
                file = self / name[1:].removesuffix(_KEPT)
                if file.is_file():
                    (self / name).delete()
                else:
                    self.before_change()
                    with self._named_errors():
                        _move(self / name, file)

    @contextlib.contextmanager
    def replacing(self) -> Iterator[Path]:
        """Yield a path of this machine to write; on success, and then at once, it is at this location.

        On a file system: a temporary name beside it (with a dot, which readers of data sets skip), flushed to
        disk and renamed. In an object store: one copy of the finished file. After an error, what was here
        before is still here.
        """
        if not self.is_local:
            with tempfile.TemporaryDirectory(prefix="ttsvar-upload-") as folder:
                staged = Path(folder) / "staged"
                yield staged
                self.before_change()
                with self._named_errors():
                    self._publish(staged)
            return
        with self._temporary() as temporary:
            yield temporary
            _flush(temporary)
            self.before_change()
            _rename(temporary, Path(self.path))
            _flush(Path(self.path).parent)

    def write_text(self, text: str) -> None:
        """Replace the content by UTF-8 text, whole or not at all."""
        with self.replacing() as temporary:
            temporary.write_text(text, encoding="utf-8")

    def create_text(self, text: str) -> bool:
        """Write a file of UTF-8 text unless there is one; return whether it was written.

        Of several processes one writes, where the file system has hard links; elsewhere the last one may.
        """
        if self.is_file():
            return False
        if not self.is_local:
            self.write_text(text)
            return True
        with self._temporary() as temporary:
            temporary.write_text(text, encoding="utf-8")
            _flush(temporary)
            self.before_change()
            try:
                _link(temporary, Path(self.path))
            except FileExistsError:
                return False
            except OSError:  # A file system without hard links.
                _rename(temporary, Path(self.path))
            _flush(Path(self.path).parent)
        return True

    @property
    def _place(self) -> str:
        # pyarrow takes "a:b" for a URI, but no absolute path.
        return os.path.abspath(self.path) if self.is_local else self.path  # noqa: PTH100 - keeps links

    def _info(self) -> Any:
        self._forget_listings()
        try:
            with self._named_errors():
                return self.filesystem.get_file_info(self._place)
        except OSError as error:
            # What the system does not even look at: a name that is too long, a folder that is another user's.
            reason = str(error) if error.errno is None else os.strerror(error.errno)
            raise StorageError(f"{self}: cannot be looked at ({reason})") from error

    def _forget_listings(self) -> None:
        """Other processes write, too: listings that fsspec has kept are old."""
        if self.fsspec is not None:
            self.fsspec.invalidate_cache()

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        final = self.local_path
        assert final is not None
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
        try:
            yield temporary
        finally:
            _discard(temporary)

    def _publish(self, staged: Path) -> None:
        if self.replaces_at_once:
            _upload(staged, self)
            return
        self.filesystem.create_dir(self.path.rpartition("/")[0], recursive=True)
        temporary = self.beside(f".{self.name}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
        _upload(staged, temporary)
        self.before_change()
        # Some of these file systems do not rename over a file; what is there must not be lost meanwhile.
        kept = self.beside(f".{self.name}{_KEPT}")
        if self.is_file():
            kept.delete()
            _move(self, kept)
        _move(temporary, self)
        kept.delete()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Say where an error of a store happened; a file that is absent stays `FileNotFoundError`."""
        try:
            yield
        except (FileNotFoundError, TtsVarError):
            raise
        except Exception as error:  # Clients of stores have errors of their own: that of the hub has httpx's.
            if self.is_local:
                raise
            reason = scrubbed(str(error).splitlines()[0]) if str(error) else type(error).__name__
            raise StorageError(f"{self}: the storage refused or failed ({reason})") from error


def locate(where: str | Path) -> Location:
    """Return the location that a path or URI names.

    Credentials and endpoints come from the environment or from the URI, as pyarrow and fsspec take them.

    Args:
        where: a path of this machine, `file://...`, or the URI of anything that pyarrow (s3, gs, abfs, ...)
            or fsspec can open.

    Raises:
        StorageError: an unknown scheme, a missing package, a URI that cannot be read.
    """
    text = str(where)
    if isinstance(where, Path) or not is_uri(text):
        return Location(path=str(Path(text).expanduser()), filesystem=pafs.LocalFileSystem())
    scheme = scheme_of(text)
    if scheme == "file":
        return locate(Path(unquote(urlsplit(text).path)))
    base, query = split_query(text)
    if base.endswith(":"):
        raise StorageError(f"{scheme}://: expected a path after the scheme, got none")
    inner = None
    try:
        if scheme in _ARROW_SCHEMES:
            filesystem, path = pafs.FileSystem.from_uri(base + query)
        else:
            import fsspec

            inner, path = fsspec.core.url_to_fs(base + query)
            filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(inner))
    except Exception as error:  # noqa: BLE001 - clients of stores have errors of their own
        # The message of a parser quotes the URI, or pieces of it, credentials and all.
        reason = scrubbed(str(error).replace(base + query, without_secrets(text)))
        if any(piece in reason for piece in secret_pieces(text)):
            reason = ""
        raise StorageError(
            f"{without_secrets(text)}: expected a local path or the URI of a storage that pyarrow or fsspec "
            f"can open here, got {scheme}:// ({reason.splitlines()[0] if reason else type(error).__name__})"
        ) from None
    path = path.rstrip("/")
    return Location(
        path=path, filesystem=filesystem, fsspec=inner, base_uri=base, base_path=path, query=query
    )


def storage_environment() -> dict[str, str]:
    """Return the variables that hold endpoints and credentials of object stores.

    A process on a cluster inherits the environment of the node, not of the job: what the job was given
    must be handed on. The values are secrets: never log them.
    """
    return {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_rename = Path.replace
_link = os.link
_discard = partial(Path.unlink, missing_ok=True)


def _remove(file: Location) -> None:
    if file.fsspec is not None:
        file.fsspec.rm_file(file.path)
    else:
        file.filesystem.delete_file(file._place)


def _move(source: Location, target: Location) -> None:
    source.filesystem.move(source.path, target.path)


def _upload(staged: Path, target: Location) -> None:
    if target.fsspec is None:
        # Not `pyarrow.fs.copy_files`: it leaves closing to a destructor, which ignores that an upload failed.
        with contextlib.ExitStack() as stack:
            content: Any = b""
            if staged.stat().st_size:
                content = stack.enter_context(pa.memory_map(str(staged))).read_buffer()
            stream = target.filesystem.open_output_stream(target.path)
            stream.write(content)
            stream.close()
        return
    whole_sizes = (None, target.size(), staged.stat().st_size)
    try:
        target.fsspec.put_file(str(staged), target.path)
    except BaseException:
        # What a failed copy published goes; an error on the way must not hide the first one.
        with contextlib.suppress(OSError, StorageError):
            if target.size() not in whole_sizes:
                target.delete()
        raise
