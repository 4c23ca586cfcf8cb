"""Which files a prompt set is: one or several, those of a pattern or a folder, a copy of standard input."""

from __future__ import annotations

import contextlib
import csv
import glob
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from ttsvar_ray.errors import InputError
from ttsvar_ray.prompts.hub_dataset import dataset_files, is_dataset
from ttsvar_ray.prompts.source import (
    CODECS,
    STANDARD_INPUT,
    PromptFormat,
    PromptSource,
    check_readable,
    fits_pattern,
    format_of,
    is_prompt_file,
)
from ttsvar_ray.storage.location import Location, locate
from ttsvar_ray.storage.uris import is_uri, split_query, without_secrets

_MAGIC_NUMBERS = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_PARQUET = b"PAR1"
_SPACE = b"\xef\xbb\xbf \t\r\n"


@dataclass(frozen=True, slots=True)
class PromptFile:
    """One file of a prompt set."""

    location: Location
    format: PromptFormat


def prompt_files(source: PromptSource) -> list[PromptFile]:
    """Return the files of a prompt set in the order in which they are read.

    Those of a pattern, a folder or a data set of the hub are in the order of their names.

    Raises:
        InputError: none, one that cannot be read, or files of several formats.
    """
    for name, value in (("split", source.split), ("subset", source.subset)):
        if value is not None and not any(map(is_dataset, source.paths)):
            raise InputError(
                f"prompts.{name}: read of a data set of the hub only (hf://datasets/OWNER/NAME); the prompts "
                f"are {source.name}; remove it"
            )
    locations = [location for path in source.paths for location in _locations(path, source)]
    for location in locations:
        check_readable(location)
    files = [PromptFile(location, source.format or format_of(location)) for location in locations]
    formats = sorted({file.format.value for file in files})
    if len(formats) > 1:
        raise InputError(
            f"{source.name}: expected files of one format, got {', '.join(formats)}; name those that are "
            "meant by a pattern, such as set/*.jsonl"
        )
    return files


def _locations(path: str, source: PromptSource) -> Iterator[Location]:
    any_format = source.format is not None
    if is_dataset(path):
        yield from dataset_files(path, split=source.split, subset=source.subset, any_format=any_format)
        return
    remote = is_uri(path)
    if not remote and any(char in path for char in "*?[") and not Path(path).expanduser().exists():
        found = [Path(each) for each in sorted(glob.glob(str(Path(path).expanduser()), recursive=True))]  # noqa: PTH207
        yield from _some([locate(each) for each in found if each.is_file()], path)
        return
    if remote and "*" in path:
        yield from _some(_matching(path), path)
        return
    location = locate(path)
    if not location.is_folder():
        yield location
        return
    inside = [
        location / name
        for name in location.names()
        if not name.startswith((".", "_")) and (any_format or is_prompt_file(location / name))
    ]
    yield from _some([each for each in inside if each.is_file()], path)


def _some(found: list[Location], path: str) -> list[Location]:
    if not found:
        raise InputError(f"{without_secrets(path)}: expected prompt files, found none")
    return found


def _matching(pattern: str) -> list[Location]:
    """Return the files of a store that match a pattern: `*` for what has no slash, `**` for what may have."""
    text, query = split_query(pattern)
    base = text[: text.index("*")].rpartition("/")[0]
    tail = text[len(base) + 1 :]
    folder = locate(base + query)
    selector = pafs.FileSelector(folder.path, allow_not_found=True, recursive="/" in tail)
    infos = sorted(folder.listed(selector), key=lambda info: info.path)
    wanted = f"{folder.path}/{tail}"
    return [
        replace(folder, path=info.path)
        for info in infos
        if info.type == pafs.FileType.File and fits_pattern(info.path, wanted)
    ]


@contextlib.contextmanager
def readable_twice(source: PromptSource, stream: BinaryIO) -> Iterator[PromptSource]:
    """Yield where the prompts are; standard input, a stream, is copied to a file while the block runs."""
    if source.path != STANDARD_INPUT:
        yield source
        return
    spooled = spool_standard_input(source, stream)
    try:
        yield spooled
    finally:
        Path(spooled.name).unlink(missing_ok=True)


def spool_standard_input(
    source: PromptSource, stream: BinaryIO, directory: Path | None = None
) -> PromptSource:
    """Copy standard input to a temporary file.

    Its format is that of `source`, or what it begins with: a Parquet file, JSON lines, a JSON array of
    objects, a header line of CSV or TSV that names `source.column`; anything else is one prompt a line. Text
    may be compressed.

    Returns:
        The source with the path of the copy; the caller removes it after the job.

    Raises:
        InputError: nothing came, or text without the columns that are asked for.
    """
    assert source.path == STANDARD_INPUT
    head = stream.read(1 << 16)
    if not head:
        raise InputError("standard input: expected prompts, got nothing")
    ending = next((ending for magic, ending in _MAGIC_NUMBERS.items() if head.startswith(magic)), "")
    found = source.format or _format(_decompressed(head, ending), source.column)
    if found is PromptFormat.TXT and (source.id_column is not None or source.keep is not None):
        raise InputError(
            "standard input: expected columns, for prompts.id_column or prompts.columns, got text; JSON "
            "lines, a JSON array, Parquet, and CSV or TSV whose header names the prompt's column "
            f"({source.column!r}, prompts.column) have them"
        )
    with tempfile.NamedTemporaryFile(
        prefix="ttsvar-prompts-", suffix=f"{found.value}{ending}", dir=directory, delete=False
    ) as copy:
        copy.write(head)
        shutil.copyfileobj(stream, copy)
    return replace(source, path=copy.name)


def _format(head: bytes, column: str) -> PromptFormat:
    if head.startswith(_PARQUET):
        return PromptFormat.PARQUET
    text = head.lstrip(_SPACE)
    if text.startswith(b"{"):
        return PromptFormat.JSONL
    if text.startswith(b"[") and text[1:].lstrip(_SPACE).startswith(b"{"):
        return PromptFormat.JSON
    lines = text.splitlines()
    for delimiter, format_ in ((",", PromptFormat.CSV), ("\t", PromptFormat.TSV)):
        header = next(csv.reader([lines[0].decode(errors="replace")], delimiter=delimiter)) if lines else []
        if column in (name.strip() for name in header):
            return format_
    return PromptFormat.TXT


def _decompressed(head: bytes, ending: str) -> bytes:
    if not ending:
        return head
    try:
        with pa.CompressedInputStream(pa.BufferReader(head), CODECS[ending]) as stream:
            return bytes(stream.read(1 << 12))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"standard input: cannot be decompressed ({str(error).splitlines()[0]})") from None
