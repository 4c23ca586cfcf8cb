"""Prompts that are typed or piped: copied to a file, because a prompt set is read twice."""

from __future__ import annotations

import csv
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from ttsvar_ray.errors import InputError
from ttsvar_ray.prompts.source import CODECS, STANDARD_INPUT, PromptFormat, PromptSource

_MAGIC_NUMBERS = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_PARQUET = b"PAR1"
_SPACE = b"\xef\xbb\xbf \t\r\n"


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
