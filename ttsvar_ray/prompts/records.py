"""One reader per text format: numbered records out of a file, bad lines to the side."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from ttsvar_ray.errors import InputError
from ttsvar_ray.prompts.lines import (
    MAX_LINE_BYTES,
    TOO_LONG,
    check_encoding,
    head_of,
    open_text,
    raw_lines,
    text_lines,
    undecodable_byte,
)
from ttsvar_ray.prompts.source import BadLine, PromptFormat, PromptSource, excerpt
from ttsvar_ray.prompts.tables import check_columns, table_records
from ttsvar_ray.storage.location import Location

Record = tuple[int, Mapping[str, Any], str]
"""(line number, fields by name, raw line for an excerpt)."""

_MOST_DIGITS = 4000

_JSON_CHARACTERS = 1 << 16
"""Read at a time of a JSON array."""


def read_records(
    path: Location, file_format: PromptFormat, source: PromptSource, on_bad_line: Callable[[BadLine], None]
) -> Iterator[Record]:
    """Yield the records of a prompt file in order, streaming.

    Raises:
        InputError: an unreadable file, another encoding, a column that is not there.
    """
    if file_format is PromptFormat.PARQUET:
        yield from table_records(path, source, on_bad_line)
        return
    is_array = file_format is PromptFormat.JSON and head_of(path).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(
        b"["
    )
    check_encoding(path, has_lines=not is_array)
    if file_format is PromptFormat.TXT:
        if source.id_column is not None:
            raise InputError(
                f"{path}: a .txt file has no columns, so prompts.id_column={source.id_column!r} cannot be "
                "read; use .jsonl, .csv or .parquet"
            )
        for number, text in text_lines(path, on_bad_line):
            yield number, {source.column: text}, text
    elif file_format in (PromptFormat.CSV, PromptFormat.TSV):
        yield from _csv_records(path, source, on_bad_line, "," if file_format is PromptFormat.CSV else "\t")
    elif is_array:
        yield from _json_records(path, on_bad_line)
    else:
        yield from _jsonl_records(path, on_bad_line)


class _Decoder(json.JSONDecoder):
    """Reads JSON; `changed` says what Python changed of it (a repeated key, a number beyond 64 bits)."""

    def __init__(self) -> None:
        super().__init__(
            object_pairs_hook=self._object,
            parse_float=partial(self._number, float),
            parse_int=partial(self._number, int),
        )
        self.changed = ""

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        self.changed = ""
        return super().raw_decode(s, idx)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            (repeated, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            self.changed = f"expected each key once in a JSON object, got {excerpt(repeated)!r} twice"
        return fields

    def _number(self, kind: type[int] | type[float], digits: str) -> int | float:
        # Of more digits Python makes no whole number, or takes long to.
        number = kind(digits) if kind is float or len(digits) <= _MOST_DIGITS else math.inf
        if number in (math.inf, -math.inf):
            self.changed = f"expected numbers that fit 64 bits, got {excerpt(digits)}"
        return number


def _jsonl_records(path: Location, on_bad_line: Callable[[BadLine], None]) -> Iterator[Record]:
    decoder = _Decoder()
    for number, text in text_lines(path, on_bad_line):
        reason = ""
        value: Any = None
        if not text.strip():
            reason = "expected a JSON object, got a blank line"
        else:
            try:
                value = decoder.decode(text)
            except json.JSONDecodeError as error:
                reason = f"expected a JSON object, got invalid JSON ({error.msg} at column {error.colno})"
            except RecursionError as error:
                reason = f"expected a JSON object, got JSON that cannot be read ({error})"
            else:
                reason = _no_object(value) or decoder.changed
        if reason:
            on_bad_line(BadLine(line=number, reason=reason, excerpt=excerpt(text)))
        else:
            yield number, value, text


def _no_object(value: Any) -> str:
    if isinstance(value, dict):
        return ""
    kinds = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return f"expected a JSON object, got {kinds.get(type(value), 'null')}"


def _json_records(path: Location, on_bad_line: Callable[[BadLine], None]) -> Iterator[Record]:
    """Yield the objects of a JSON array, of which no more than one is in memory."""
    decoder = _Decoder()
    for number, value, text in _elements(path, decoder):
        reason = _no_object(value) or decoder.changed
        if not reason and not text.isascii() and any("\udc80" <= char <= "\udcff" for char in text):
            reason = "expected UTF-8, got other bytes"
        if reason:
            raw = text.encode("utf-8", errors="surrogateescape")
            on_bad_line(BadLine(line=number, reason=reason, excerpt=excerpt(raw)))
        else:
            yield number, value, text


def _elements(path: Location, decoder: json.JSONDecoder) -> Iterator[tuple[int, Any, str]]:
    number, buffer, is_whole = 0, "", False

    def wrong(what: str) -> InputError:
        return InputError(f"{path}: not a valid JSON array: {what} after element {number}")

    try:
        with open_text(path) as raw:
            file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape")
            while True:
                buffer = buffer.lstrip()
                separator = "[" if number == 0 else ","
                if buffer[:1] == "]" and number:
                    return
                body = buffer[1:].lstrip() if buffer[:1] == separator else ""
                if number == 0 and body[:1] == "]":
                    return
                if buffer and not buffer.startswith(separator):
                    raise wrong(f"expected {separator!r}, got {buffer[:1]!r}")
                is_decoded = False
                try:
                    value, end = decoder.raw_decode(body)
                    is_decoded = True
                except (ValueError, RecursionError) as error:
                    if body and (is_whole or len(body) > MAX_LINE_BYTES + _JSON_CHARACTERS):
                        raise wrong(getattr(error, "msg", str(error))) from None
                if is_decoded and (end < len(body) or is_whole):
                    number += 1
                    yield number, value, body[:end]
                    buffer = body[end:]
                    continue
                if is_whole:
                    raise wrong("the file ends")
                # What ends here may go on in the file. Twice as much each time: a long element is parsed in
                # no more than twice the time of its bytes.
                more = file.read(max(_JSON_CHARACTERS, len(buffer)))
                buffer, is_whole = buffer + more, not more
    except (pa.ArrowInvalid, OSError) as error:
        raise wrong(str(error).splitlines()[0]) from None


@dataclass(slots=True)
class _CsvRecord:
    """The lines of one record: more than one where a quoted field goes on over their ends."""

    first: int
    lines: list[bytes] = field(default_factory=list)
    size: int = 0
    is_open: bool = False

    @property
    def is_too_long(self) -> bool:
        return self.size > MAX_LINE_BYTES

    @property
    def raw(self) -> bytes:
        return b"\n".join(self.lines)


def _csv_records(
    path: Location, source: PromptSource, on_bad_line: Callable[[BadLine], None], delimiter: str
) -> Iterator[Record]:
    csv.field_size_limit(MAX_LINE_BYTES)
    header: list[str] | None = None
    for record in _lines_of_records(path, delimiter.encode()):
        fields: list[str] = []
        raw, reason = record.raw, ""
        at = undecodable_byte(raw)
        if record.is_too_long and not record.is_open:
            reason = TOO_LONG
        elif at is not None and not record.is_open:
            line = record.first + raw[:at].count(b"\n")
            where = f" in line {line}" if len(record.lines) > 1 else f" at position {at}"
            reason = f"expected UTF-8, got byte 0x{raw[at]:02x}{where}"
        elif not raw.strip():
            reason = "expected fields, got a blank line"
        else:
            try:
                (fields,) = csv.reader(
                    [raw.decode("utf-8", errors="replace")], strict=True, delimiter=delimiter
                )
            except csv.Error as error:
                if record.is_open or len(record.lines) > 1:
                    # An open quote swallowed good lines: one dead letter would hide how many.
                    raise InputError(
                        f"{path}: not valid CSV from line {record.first} on ({error}); is a quote left open?"
                    ) from None
                reason = f"expected CSV, got {error}"
        if header is None:
            if reason:
                raise InputError(f"{path}: the header line cannot be read: {reason}")
            header = [name.strip() for name in fields]
            check_columns(path, header, source)
            continue
        if not reason and len(fields) != len(header):
            reason = f"expected {len(header)} fields as in the header, got {len(fields)}"
        if reason:
            on_bad_line(BadLine(line=record.first, reason=reason, excerpt=excerpt(raw)))
        else:
            yield record.first, dict(zip(header, fields, strict=True)), raw.decode()
    if header is None:
        raise InputError(f"{path}: expected a header line and prompts, got nothing but blank lines")


def _lines_of_records(path: Location, delimiter: bytes) -> Iterator[_CsvRecord]:
    """Yield the lines of each record, as bytes: what cannot be decoded must not move where a record ends.

    Blank lines are records of their own; those at the beginning and at the end of the file are dropped.
    """
    blank: range = range(0)
    record: _CsvRecord | None = None
    is_begun = False
    for line in raw_lines(path):
        if record is None:
            if not line.raw.strip():
                blank = range(blank.start if blank else line.number, line.number + 1)
                continue
            if is_begun:
                yield from (_CsvRecord(number) for number in blank)
            blank, is_begun = range(0), True
            record = _CsvRecord(line.number)
        record.is_open = _ends_inside_quotes(line.raw, record.is_open, delimiter)
        record.is_open ^= line.quotes_cut % 2 == 1
        record.size += len(line.raw) + 1
        if not record.is_too_long or not record.lines:
            record.lines.append(line.raw)
        if not record.is_open:
            yield record
            record = None
    if record is not None:
        yield record


def _ends_inside_quotes(line: bytes, inside: bool, delimiter: bytes) -> bool:
    """Whether a quoted field goes on after this line. A quote opens a field only as its first character."""
    if not inside and b'"' not in line:
        return False
    at = 0
    while True:
        if not inside and line[at : at + 1] == b'"':
            inside, at = True, at + 1
        if inside:
            at = line.find(b'"', at)
            if at < 0:
                return True
            at += 1
            if line[at : at + 1] == b'"':  # A quote that is written twice is one of the field's.
                at += 1
                continue
            inside = False
        at = line.find(delimiter, at)
        if at < 0:
            return False
        at += 1
