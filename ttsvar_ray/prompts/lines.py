"""Text lines out of bytes: byte-order marks, undecodable lines, files that are not UTF-8 at all."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ttsvar_ray.errors import InputError
from ttsvar_ray.prompts.source import BadLine, excerpt
from ttsvar_ray.storage import Location

MAX_LINE_BYTES = 1 << 20
"""A longer line is a bad line: no prompt has a megabyte, and no line may fill the memory."""

_HEAD_BYTES = 1 << 16

_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)

_MAGIC_NUMBERS = (
    (b"PAR1\x15", "a Parquet file", "name it .parquet"),
    (b"\x1f\x8b", "a gzip file", "decompress it first"),
    (b"PK\x03\x04", "a zip file", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "decompress it first"),
)


def check_encoding(path: Location) -> None:
    """Raise `InputError` if the file as a whole is not UTF-8 text.

    Single undecodable lines are not its business: they become bad lines. A file counts as another
    encoding when it begins with another byte-order mark, holds NUL bytes, or when more than half of
    the lines in its first 64 KiB cannot be decoded.
    """
    with path.open() as file:
        head = file.read(_HEAD_BYTES)
    for mark, encoding in _OTHER_MARKS:
        if head.startswith(mark):
            raise InputError(f"{path}: expected UTF-8 text, got {encoding}; convert it to UTF-8")
    for magic, found, advice in _MAGIC_NUMBERS:
        if head.startswith(magic):
            raise InputError(f"{path}: expected UTF-8 text, got {found}; {advice}")
    if b"\0" in head:
        raise InputError(
            f"{path}: expected UTF-8 text, got binary data (a NUL byte at offset {head.index(0)}); "
            "if it is UTF-16 text, convert it to UTF-8"
        )
    lines = head.split(b"\n")
    if len(head) == _HEAD_BYTES and len(lines) > 1:
        lines.pop()  # The last line may be cut inside a character.
    lines = [line for line in lines if line.strip()]
    undecodable = [line for line in lines if not _decodes(line)]
    if len(undecodable) * 2 > len(lines):
        raise InputError(
            f"{path}: expected UTF-8 text, but {len(undecodable)} of its first {len(lines)} lines cannot "
            f"be decoded (for example {excerpt(undecodable[0])[:60]!r}); convert it to UTF-8"
        )


def _decodes(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def text_lines(path: Location, on_bad_line: Callable[[BadLine], None]) -> Iterator[tuple[int, str]]:
    """Yield (1-based line number, text without its line end) of a UTF-8 file, streaming.

    A byte-order mark is dropped. Blank lines at the end of the file are dropped too; blank lines
    between others are yielded. Undecodable and overlong lines go to `on_bad_line`.
    """
    blank: list[_Blank] = []
    for number, raw in _raw_lines(path):
        if len(raw) > MAX_LINE_BYTES:
            on_bad_line(
                BadLine(
                    line=number,
                    reason=f"expected at most {MAX_LINE_BYTES} bytes in a line, got more",
                    excerpt=excerpt(raw),
                )
            )
            continue
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            on_bad_line(
                BadLine(
                    line=number,
                    reason=f"expected UTF-8, got byte 0x{raw[error.start]:02x} at position {error.start}",
                    excerpt=excerpt(raw),
                )
            )
            continue
        if not text.strip():
            if not blank or not blank[-1].goes_on(number, text):
                blank.append(_Blank(number, text))
            blank[-1].count += 1
            continue
        for run in blank:
            yield from ((run.first + i, run.text) for i in range(run.count))
        blank.clear()
        yield number, text


@dataclass(slots=True)
class _Blank:
    """Blank lines that follow each other and are alike: a file may hold millions of them."""

    first: int
    text: str
    count: int = 0

    def goes_on(self, number: int, text: str) -> bool:
        return number == self.first + self.count and text == self.text


def _raw_lines(path: Location) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines without their ends; of an overlong one its first MAX_LINE_BYTES + 1 bytes."""
    with path.open() as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            rest = raw
            while not rest.endswith(b"\n") and len(rest) > MAX_LINE_BYTES:
                rest = file.readline(MAX_LINE_BYTES + 1)
            yield number, raw.rstrip(b"\r\n") if len(raw) <= MAX_LINE_BYTES else raw
