"""What the files of a part must be, to the bit: `manifest/part-00000.json`, by which flipped bits are found.

It is written before the files that it is about, while these are finished under temporary names: so a part
that is there always has one. While a part is replaced, its manifest also names what the files were before,
since a run that is killed then leaves some of these; `settle` ends that state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.errors import OutputError
from ttsvar_ray.storage.location import Location

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSum:
    """One file.

    Attributes:
        rows: of its table.
        bytes: its size.
        sha256: of its content, hexadecimal.
        ran: of images, their prompts and the trajectories of each segment (`PlanRecord.ran`); else empty.
    """

    rows: int
    bytes: int
    sha256: str
    ran: tuple[int, ...] = ()

    @classmethod
    def of(cls, file: Path, *, rows: int, ran: tuple[int, ...] = ()) -> FileSum:
        """Read a file of this machine."""
        with file.open("rb") as stream:
            return cls(rows=rows, bytes=file.stat().st_size, sha256=sha256_of(stream), ran=ran)

    def to_json(self) -> dict[str, Any]:
        """Return it as a manifest holds it."""
        told = {"rows": self.rows, "bytes": self.bytes, "sha256": self.sha256}
        return {**told, "ran": list(self.ran)} if self.ran else told


def sha256_of(stream: BinaryIO) -> str:
    """Return the sha256 of what is left of a stream, hexadecimal."""
    digest = hashlib.sha256()
    while block := stream.read(_READ_BYTES):
        digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartManifest:
    """The files of a part.

    Attributes:
        data, trace: what they are, or will be once the run that wrote this has done so.
        data_before, trace_before: what they may still be while they are replaced; else empty.
    """

    data: FileSum
    trace: FileSum
    data_before: tuple[FileSum, ...] = field(default=())
    trace_before: tuple[FileSum, ...] = field(default=())

    @property
    def is_settled(self) -> bool:
        """Whether it names one content of each file."""
        return not self.data_before and not self.trace_before

    def replaced_by(self, *, data: FileSum | None, trace: FileSum) -> PartManifest:
        """Return the manifest of this part while its files are replaced; None leaves the data as they are."""
        return PartManifest(
            data=data or self.data,
            trace=trace,
            data_before=_others(data or self.data, (self.data, *self.data_before)),
            trace_before=_others(trace, (self.trace, *self.trace_before)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as its file holds it."""
        settled = {"data": self.data.to_json(), "trace": self.trace.to_json()}
        if self.is_settled:
            return settled
        before = {
            "data": [each.to_json() for each in self.data_before],
            "trace": [each.to_json() for each in self.trace_before],
        }
        return {**settled, "before": before}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PartManifest:
        """Return the manifest that `to_json` wrote; KeyError, TypeError or ValueError if it is none."""
        before = data.get("before", {"data": [], "trace": []})
        return cls(
            data=_file_sum(data["data"]),
            trace=_file_sum(data["trace"]),
            data_before=tuple(map(_file_sum, before["data"])),
            trace_before=tuple(map(_file_sum, before["trace"])),
        )

    def write(self, location: Location) -> None:
        """Write the manifest, whole or not at all."""
        location.write_text(json.dumps(self.to_json()) + "\n")


def read_part_manifest(location: Location) -> PartManifest | None:
    """Return the manifest of a part, or None if there is none.

    Raises:
        OutputError: there is one, and it cannot be read.
    """
    try:
        return PartManifest.from_json(json.loads(location.read_bytes()))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{location}: not the manifest of a part ({type(error).__name__}: {error}); delete it and the "
            "part in data/ to have its prompts generated again"
        ) from None


def data_digest(layout: OutputLayout) -> str:
    """Return what tells the images of a run from those that it had before: by the sums of all parts.

    It is another one after `--extend` and `--retry-failed`, and when a part was made again of other bytes.
    """
    digest = hashlib.sha256()
    for chunk in sorted(layout.data_parts()):
        manifest = read_part_manifest(layout.manifest_part(chunk))
        digest.update(f"{chunk} {None if manifest is None else manifest.data.sha256}\n".encode())
    return digest.hexdigest()


def settle(layout: OutputLayout, chunk_index: int) -> None:
    """Have the manifest of a part name what its files are now, if a run was killed while it replaced them."""
    location = layout.manifest_part(chunk_index)
    manifest = read_part_manifest(location)
    if manifest is None or manifest.is_settled:
        return
    data = _found(layout.data_part(chunk_index), (manifest.data, *manifest.data_before))
    trace = _found(layout.trace_part(chunk_index), (manifest.trace, *manifest.trace_before))
    if data is not None and trace is not None:
        PartManifest(data=data, trace=trace).write(location)


def _found(file: Location, expected: tuple[FileSum, ...]) -> FileSum | None:
    """Return which of several contents a file has; None if it has another, or is not there."""
    try:
        with file.open() as stream:
            digest = sha256_of(stream)
    except FileNotFoundError:
        return None
    return next((each for each in expected if each.sha256 == digest), None)


def _others(now: FileSum, before: tuple[FileSum, ...]) -> tuple[FileSum, ...]:
    return tuple(dict.fromkeys(each for each in before if each != now))


def _file_sum(data: Mapping[str, Any]) -> FileSum:
    return FileSum(
        rows=int(data["rows"]),
        bytes=int(data["bytes"]),
        sha256=str(data["sha256"]),
        ran=tuple(map(int, data.get("ran", ()))),
    )
