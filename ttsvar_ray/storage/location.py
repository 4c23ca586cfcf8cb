"""One place: a file or folder of this machine or of an object store."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from ttsvar_ray.storage.local import LocalStore
from ttsvar_ray.storage.remote import open_remote
from ttsvar_ray.storage.uris import is_uri, scheme_of, split_query


class Store(Protocol):
    """What a file system must do; paths are text, with slashes."""

    @property
    def is_local(self) -> bool: ...
    def show(self, path: str) -> str: ...
    def uri(self, path: str) -> str: ...
    def open(self, path: str) -> BinaryIO: ...
    def open_arrow(self, path: str) -> Any: ...
    def size(self, path: str) -> int | None: ...
    def modified(self, path: str) -> float | None: ...
    def is_folder(self, path: str) -> bool: ...
    def names(self, path: str) -> list[str]: ...
    def make_folder(self, path: str) -> None: ...
    def delete(self, path: str) -> None: ...
    def remove_leftovers(self, path: str) -> None: ...
    def replacing(self, path: str) -> contextlib.AbstractContextManager[Path]: ...


@dataclass(frozen=True, slots=True)
class Location:
    """A path in a store. As text it has no secrets; `uri` may."""

    store: Store
    path: str

    def __str__(self) -> str:
        return self.store.show(self.path)

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"

    def __truediv__(self, name: str) -> Location:
        return Location(self.store, f"{self.path}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on."""
        return PurePosixPath(self.path).suffix

    @property
    def scheme(self) -> str:
        """The scheme of the storage in lower case, `file` for this machine."""
        return "file" if self.store.is_local else scheme_of(self.uri)

    @property
    def local_path(self) -> Path | None:
        """The path on this machine, if it is one."""
        return Path(self.path) if self.store.is_local else None

    @property
    def uri(self) -> str:
        """What `locate` makes this location of, in another process too. May hold secrets: never log it."""
        return self.store.uri(self.path)

    def neighbour(self, ending: str) -> Location:
        """Return the place beside this one whose name is longer by `ending`."""
        base, query = split_query(self.uri) if not self.store.is_local else (self.uri, "")
        return locate(f"{base}{ending}{query}")

    def open(self) -> BinaryIO:
        """Open for buffered reading of bytes; FileNotFoundError if it is not there."""
        return self.store.open(self.path)

    def open_arrow(self) -> Any:
        """Open for pyarrow, with random access; FileNotFoundError if it is not there."""
        return self.store.open_arrow(self.path)

    def read_bytes(self) -> bytes:
        """Return the whole content; FileNotFoundError if it is not there."""
        with self.open() as file:
            return file.read()

    def read_text(self) -> str:
        """Return the whole content, which is UTF-8; FileNotFoundError if it is not there."""
        return self.read_bytes().decode()

    def size(self) -> int | None:
        """Return the bytes of the file; None if there is none."""
        return self.store.size(self.path)

    def modified(self) -> float | None:
        """Return when the file was written, in seconds by the storage's clock; None if it does not tell.

        FileNotFoundError if it is not there.
        """
        return self.store.modified(self.path)

    def is_file(self) -> bool:
        """Whether there is a file."""
        return self.size() is not None

    def is_folder(self) -> bool:
        """Whether there is a folder."""
        return self.store.is_folder(self.path)

    def names(self) -> list[str]:
        """Return the names in this folder, ascending; none if it is not there."""
        return self.store.names(self.path)

    def make_folder(self) -> None:
        """Create this folder and those above it, where folders are things."""
        self.store.make_folder(self.path)

    def delete(self) -> None:
        """Delete the file, if it is there."""
        self.store.delete(self.path)

    def remove_leftovers(self) -> None:
        """Remove temporary files that a killed process left in this folder; only under a lock."""
        self.store.remove_leftovers(self.path)

    def replacing(self) -> contextlib.AbstractContextManager[Path]:
        """Yield a path of this machine to write; on success, and then at once, it is at this location.

        On a file system: a temporary name beside it, flushed to disk and renamed. In an object store: one
        copy of the finished file. After an error, what was here before is still here.
        """
        return self.store.replacing(self.path)

    def write_text(self, text: str) -> None:
        """Replace the content by UTF-8 text, whole or not at all."""
        with self.replacing() as temporary:
            temporary.write_text(text, encoding="utf-8")


def locate(where: str | Path) -> Location:
    """Return the location that a path or URI names.

    Args:
        where: a path of this machine, `file://...`, or the URI of anything that pyarrow (s3, gs, abfs, ...)
            or fsspec can open.

    Raises:
        StorageError: a URI that cannot be used here.
    """
    text = str(where)
    if isinstance(where, Path) or not is_uri(text):
        return Location(LocalStore(), str(Path(text).expanduser()))
    if scheme_of(text) == "file":
        return Location(LocalStore(), str(Path(unquote(urlsplit(text).path))))
    store, path = open_remote(text)
    return Location(store, path)
