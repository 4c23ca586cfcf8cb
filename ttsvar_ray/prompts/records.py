"""One reader per format: numbered records out of a file, bad lines to the side."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ttsvar_ray.errors import InputError
from ttsvar_ray.prompts.lines import MAX_LINE_BYTES, check_encoding, text_lines
from ttsvar_ray.prompts.source import BadLine, PromptFormat, PromptSource, check_readable, excerpt
from ttsvar_ray.storage import Location

Record = tuple[int, Mapping[str, Any], str]
"""(line number, fields by name, raw line for an excerpt)."""

_PARQUET_BATCH_ROWS = 1024


def read_records(
    path: Location, file_format: PromptFormat, source: PromptSource, on_bad_line: Callable[[BadLine], None]
) -> Iterator[Record]:
    """Yield the records of a prompt file in order, streaming.

    Raises:
        InputError: missing, empty or unreadable file, another encoding, a column that is not there.
    """
    check_readable(path)
    if file_format is PromptFormat.PARQUET:
        yield from _parquet_records(path, source)
        return
    check_encoding(path)
    if file_format is PromptFormat.TXT:
        if source.id_column is not None:
            raise InputError(
                f"{path}: a .txt file has no columns, so prompts.id_column={source.id_column!r} cannot be "
                "read; use .jsonl, .csv or .parquet"
            )
        for number, text in text_lines(path, on_bad_line):
            yield number, {source.column: text}, text
    elif file_format is PromptFormat.JSONL:
        yield from _jsonl_records(path, on_bad_line)
    else:
        yield from _csv_records(path, source, on_bad_line)


def _jsonl_records(path: Location, on_bad_line: Callable[[BadLine], None]) -> Iterator[Record]:
    for number, text in text_lines(path, on_bad_line):
        reason = ""
        value: Any = None
        if not text.strip():
            reason = "expected a JSON object, got a blank line"
        else:
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                reason = f"expected a JSON object, got invalid JSON ({error.msg} at column {error.colno})"
            except (RecursionError, ValueError) as error:  # Nesting or digits beyond what Python reads.
                reason = f"expected a JSON object, got JSON that cannot be read ({error})"
            else:
                if not isinstance(value, dict):
                    reason = f"expected a JSON object, got {_json_kind(value)}"
        if reason:
            on_bad_line(BadLine(line=number, reason=reason, excerpt=excerpt(text)))
        else:
            yield number, value, text


def _json_kind(value: Any) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _csv_records(
    path: Location, source: PromptSource, on_bad_line: Callable[[BadLine], None]
) -> Iterator[Record]:
    csv.field_size_limit(MAX_LINE_BYTES)
    last_line = 0

    def lines() -> Iterator[str]:
        nonlocal last_line
        for number, text in text_lines(path, on_bad_line):
            last_line = number
            yield text + "\n"

    reader = csv.reader(lines(), strict=True)
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise InputError(f"{path}: the header line is not valid CSV ({error})") from None
    if header is None:
        raise InputError(f"{path}: expected a header line and prompts, got nothing but blank lines")
    header = [name.strip() for name in header]
    _check_columns(path, header, source)
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise InputError(f"{path}: column names must differ; {', '.join(map(repr, repeated))} occurs twice")
    while True:
        first_line = last_line + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if last_line > first_line:
                # An open quote swallowed good lines: one dead letter would hide how many.
                raise InputError(
                    f"{path}: not valid CSV from line {first_line} on ({error}); is a quote left open?"
                ) from None
            on_bad_line(BadLine(line=first_line, reason=f"expected CSV, got {error}", excerpt=""))
            continue
        if fields is None:
            return
        raw = ",".join(fields)
        if len(fields) == len(header):
            yield first_line, dict(zip(header, fields, strict=True)), raw
        elif not fields:
            on_bad_line(BadLine(line=last_line, reason="expected fields, got a blank line", excerpt=""))
        else:
            reason = f"expected {len(header)} fields as in the header, got {len(fields)}"
            on_bad_line(BadLine(line=first_line, reason=reason, excerpt=excerpt(raw)))


def _parquet_records(path: Location, source: PromptSource) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = path.open_arrow()
    try:
        file = pq.ParquetFile(stream)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    with stream, file:
        schema = file.schema_arrow
        _check_columns(path, schema.names, source)
        prompt_type = schema.field(source.column).type
        if not (
            pa.types.is_string(prompt_type)
            or pa.types.is_large_string(prompt_type)
            or pa.types.is_string_view(prompt_type)
            or pa.types.is_dictionary(prompt_type)
        ):
            raise InputError(f"{path}: column {source.column!r}: expected text, got {prompt_type}")
        number = 0
        try:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield number, fields, ""
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: damaged after row {number} ({str(error).splitlines()[0]})") from None


def _check_columns(path: Location, found: list[str], source: PromptSource) -> None:
    wanted = {"prompts.column": source.column, "prompts.id_column": source.id_column}
    for setting, name in wanted.items():
        if name is not None and name not in found:
            columns = ", ".join(map(repr, found)) or "none"
            raise InputError(f"{path}: no column {name!r}; columns found: {columns}; set {setting}")
