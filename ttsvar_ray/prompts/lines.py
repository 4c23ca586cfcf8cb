"""Text lines out of bytes: compression, line ends, marks, undecodable lines, files that are not UTF-8."""

from __future__ import annotations

import codecs
import io
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import pyarrow as pa

from ttsvar_ray.errors import InputError
from ttsvar_ray.prompts.source import CODECS, BadLine, excerpt, suffixes_of
from ttsvar_ray.storage.location import Location

MAX_LINE_BYTES = 1 << 20
"""A longer line is a bad line: no prompt has a megabyte, and no line may fill the memory."""

TOO_LONG = f"expected at most {MAX_LINE_BYTES} bytes in a line, got more"

_HEAD_BYTES = 1 << 16

_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)

_MAGIC_NUMBERS = (
    (b"PAR1\x15", "a Parquet file", "name it .parquet"),
    (b"\x1f\x8b", "a gzip file", "name it .gz, after the suffix of its format"),
    (b"PK\x03\x04", "a zip file", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "name it .zst, after the suffix of its format"),
)


def open_text(path: Location) -> BinaryIO:
    """Open a file for reading bytes, decompressed as its suffix says."""
    codec = CODECS.get((suffixes_of(path) or [""])[-1])
    if codec is None:
        return path.open()
    return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(path.open_arrow(), codec)))


def head_of(path: Location) -> bytes:
    """Return the first 64 KiB of a file, decompressed.

    Raises:
        InputError: it is not compressed as its suffix says.
    """
    try:
        with open_text(path) as file:
            return file.read(_HEAD_BYTES)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None


def check_encoding(path: Location, *, has_lines: bool = True) -> None:
    """Raise `InputError` if the file as a whole is not UTF-8 text.

    Single undecodable lines are not its business: they become bad lines. A file counts as another
    encoding when it begins with another byte-order mark, or when more than half of the lines in its first
    64 KiB cannot be decoded or hold NUL bytes; where lines are no records, when a NUL byte is there at all.
    """
    head = head_of(path)
    for mark, encoding in _OTHER_MARKS:
        if head.startswith(mark):
            raise InputError(f"{path}: expected UTF-8 text, got {encoding}; convert it to UTF-8")
    for magic, found, advice in _MAGIC_NUMBERS:
        if head.startswith(magic):
            raise InputError(f"{path}: expected UTF-8 text, got {found}; {advice}")
    lines = head.split(b"\r" if _ends_lines_with_returns(head) else b"\n") if has_lines else []
    if len(head) == _HEAD_BYTES and len(lines) > 1:
        lines.pop()  # The last line may be cut inside a character.
    lines = [line for line in lines if line.strip()]
    undecodable = [line for line in lines if undecodable_byte(line) is not None]
    if has_lines and len(undecodable) * 2 <= len(lines):
        return
    if b"\0" in head:
        raise InputError(
            f"{path}: expected UTF-8 text, got binary data (a NUL byte at offset {head.index(0)}); "
            "if it is UTF-16 text, convert it to UTF-8"
        )
    if undecodable:
        raise InputError(
            f"{path}: expected UTF-8 text, but {len(undecodable)} of its first {len(lines)} lines cannot "
            f"be decoded (for example {excerpt(undecodable[0])[:60]!r}); convert it to UTF-8"
        )


def undecodable_byte(raw: bytes) -> int | None:
    """Return where bytes cease to be UTF-8, or the first NUL, which no text has; None where neither is."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return raw.index(0) if 0 in raw else None


def is_blank(text: str) -> bool:
    """Whether people see nothing: white space, and characters without a glyph: zero-width ones, controls."""
    return all(char.isspace() or unicodedata.category(char) in _UNSEEN for char in text)


_UNSEEN = ("Cc", "Cf")


@dataclass(frozen=True, slots=True)
class _RawLine:
    """A line of a file, without its end and without a byte-order mark at its beginning.

    Attributes:
        number: 1-based.
        raw: all of it, or of an overlong one the first `MAX_LINE_BYTES` + 1 bytes.
        quotes_cut: quotation marks in what is missing of it.
    """

    number: int
    raw: bytes
    quotes_cut: int = 0

    @property
    def is_too_long(self) -> bool:
        """Whether something is missing."""
        return len(self.raw) > MAX_LINE_BYTES


def raw_lines(path: Location) -> Iterator[_RawLine]:
    """Yield the lines of a file, streaming, whatever ends them: LF, CR LF, or CR alone in all of the file.

    A mark at the beginning of any line is dropped: files that were put together have them inside.

    Raises:
        InputError: compressed data that is damaged.
    """
    translates = _ends_lines_with_returns(head_of(path))
    number = 0
    try:
        with open_text(path) as opened:
            file = cast(BinaryIO, io.BufferedReader(_NewlinesForReturns(opened))) if translates else opened
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                quotes_cut, rest = 0, raw
                while not rest.endswith(b"\n") and len(rest) > MAX_LINE_BYTES:
                    rest = file.readline(MAX_LINE_BYTES + 1)
                    quotes_cut += rest.count(b'"')
                line = raw.rstrip(b"\r\n") if len(raw) <= MAX_LINE_BYTES else raw
                while line.startswith(codecs.BOM_UTF8):
                    line = line[len(codecs.BOM_UTF8) :]
                yield _RawLine(number, line, quotes_cut)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: damaged after line {number} ({str(error).splitlines()[0]})") from None


def text_lines(path: Location, on_bad_line: Callable[[BadLine], None]) -> Iterator[tuple[int, str]]:
    """Yield (1-based line number, text without its line end) of a UTF-8 file, streaming.

    Blank lines at the end of the file are dropped; blank lines between others are yielded. Undecodable and
    overlong lines go to `on_bad_line`.
    """
    blank: list[_Blank] = []
    for line in raw_lines(path):
        number, raw = line.number, line.raw
        if line.is_too_long:
            on_bad_line(BadLine(line=number, reason=TOO_LONG, excerpt=excerpt(raw)))
            continue
        at = undecodable_byte(raw)
        if at is not None:
            reason = f"expected UTF-8, got byte 0x{raw[at]:02x} at position {at}"
            on_bad_line(BadLine(line=number, reason=reason, excerpt=excerpt(raw)))
            continue
        text = raw.decode("utf-8")
        if is_blank(text):
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


def _ends_lines_with_returns(head: bytes) -> bool:
    return b"\r" in head and b"\n" not in head


class _NewlinesForReturns(io.RawIOBase):
    """A stream with line feeds where another one has carriage returns, or both."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._after_return = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        read = b""
        while not read and (chunk := self._file.read(len(buffer))):
            read = chunk[1:] if self._after_return and chunk.startswith(b"\n") else chunk
            self._after_return = chunk.endswith(b"\r")
            read = read.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        buffer[: len(read)] = read
        return len(read)
