"""Parquet prompt files: rows in small batches, of the columns that are wanted, with their Arrow types."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ttsvar_ray.columns import ColumnType, carried_type, held
from ttsvar_ray.errors import InputError
from ttsvar_ray.prompts.source import BadLine, PromptSource, excerpt
from ttsvar_ray.storage.location import Location

_BATCH_ROWS = 1024
_BATCH_BYTES = 8_000_000
"""What a batch may take as it is in the file, decompressed: rows may hold pictures."""

_STREAM_BYTES = 1 << 20

_NAMES_SHOWN = 20

_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises for bytes that are no Parquet file, or one that it does not read."""


def table_columns(path: Location, source: PromptSource) -> dict[str, ColumnType]:
    """Return the types of the caller's columns of a Parquet file, in its order; not of those without one.

    Raises:
        InputError: not a Parquet file, or without what it must have.
    """
    with _open(path) as file:
        schema = _checked_schema(path, file, source)
        return {
            field.name: ColumnType(carried_type(field.type))
            for field in schema
            if source.carries(field.name) and not pa.types.is_null(field.type)
        }


def table_records(
    path: Location, source: PromptSource, on_bad_line: Callable[[BadLine], None]
) -> Iterator[tuple[int, Mapping[str, Any], str]]:
    """Yield (1-based row number, fields by name, "") of a Parquet file, streaming.

    Values are those of `columns.held_type`. A row with text that is not UTF-8 goes to `on_bad_line`.
    """
    number = 0
    with _open(path) as file:
        schema = _checked_schema(path, file, source)
        taken = (source.column, source.id_column)
        wanted = [field.name for field in schema if field.name in taken or source.carries(field.name)]
        try:
            for batch in _batches(file, wanted):
                for fields in _rows(_held(path, batch)):
                    number += 1
                    if isinstance(fields, UnicodeDecodeError):
                        on_bad_line(_undecodable(number, batch.column_names, fields))
                    else:
                        yield number, fields, ""
        except _DAMAGED as error:
            raise InputError(f"{path}: damaged after row {number} ({str(error).splitlines()[0]})") from None


def check_columns(path: Location, found: Sequence[str], source: PromptSource) -> None:
    """Raise `InputError` unless a table has the columns that are needed, each once."""
    wanted = [("prompts.column", source.column), ("prompts.id_column", source.id_column)]
    wanted += [("prompts.columns", name) for name in (*(source.keep or ()), *source.drop)]
    for setting, name in wanted:
        if name is not None and name not in found:
            columns = _shown(found) or "none"
            is_one = len(found) == 1 and any(mark in found[0] for mark in ";\t")
            remedy = "separate cells by commas" if is_one else f"set {setting}"
            raise InputError(f"{path}: no column {name!r}; columns found: {columns}; {remedy}")
    if repeated := sorted({name for name in found if found.count(name) > 1}):
        raise InputError(f"{path}: column names must differ; {_shown(repeated)} occurs twice")


def _shown(names: Sequence[str]) -> str:
    """Return names for a message: of a file that is no table, the header may be all of it."""
    more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(repr(excerpt(name)) for name in names[:_NAMES_SHOWN]) + more


@contextlib.contextmanager
def _open(path: Location) -> Iterator[pq.ParquetFile]:
    with path.open_arrow() as stream:
        try:
            # Row groups are streamed: one that holds pictures may be as large as the file.
            file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_STREAM_BYTES)
            file.schema_arrow  # noqa: B018 - its names are read only now, and may be no text
        except _DAMAGED as error:
            raise InputError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
        with file:
            yield file


def _checked_schema(path: Location, file: pq.ParquetFile, source: PromptSource) -> pa.Schema:
    schema = file.schema_arrow
    check_columns(path, schema.names, source)
    texts, numbers = (pa.types.is_string, pa.types.is_large_string), (pa.types.is_integer,)
    for name, expected, kinds in (
        (source.column, "text", texts),
        (source.id_column, "text or whole numbers", (*texts, *numbers)),
    ):
        if name is not None and not any(fits(carried_type(schema.field(name).type)) for fits in kinds):
            raise InputError(f"{path}: column {name!r}: expected {expected}, got {schema.field(name).type}")
    return schema


def _batches(file: pq.ParquetFile, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    for index in range(file.metadata.num_row_groups):
        rows = _batch_rows(file, index, wanted)
        yield from file.iter_batches(batch_size=rows, row_groups=[index], columns=wanted)


def _batch_rows(file: pq.ParquetFile, index: int, wanted: list[str]) -> int:
    """Return how many rows of a row group fit into a batch on average."""
    group = file.metadata.row_group(index)
    if group.total_byte_size <= _BATCH_BYTES:
        return _BATCH_ROWS
    # Of a damaged group `column` ends the whole process; reading a row of it raises.
    next(file.iter_batches(batch_size=1, row_groups=[index], columns=wanted), None)
    paths = [file.schema.column(place).path for place in range(group.num_columns)]
    size = sum(
        group.column(place).total_uncompressed_size
        for place, path in enumerate(paths)
        if path in wanted or path.partition(".")[0] in wanted
    )
    return max(min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(size, 1)), 1)


def _held(path: Location, batch: pa.RecordBatch) -> pa.RecordBatch:
    fields = zip(batch.schema, batch.columns, strict=True)
    arrays = [_held_column(path, field, array) for field, array in fields]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _held_column(path: Location, field: pa.Field, array: pa.Array) -> pa.Array:
    try:
        return held(array, carried_type(field.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise InputError(
            f"{path}: column {field.name!r}: values of type {field.type} cannot be carried through "
            f"({str(error).splitlines()[0]}); leave it out by prompts.columns"
        ) from None


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        yield from (_row(batch.slice(row, 1)) for row in range(batch.num_rows))


def _row(batch: pa.RecordBatch) -> dict[str, Any] | UnicodeDecodeError:
    try:
        (fields,) = batch.to_pylist()
    except UnicodeDecodeError as error:
        return error
    return dict(fields)


def _undecodable(number: int, columns: Sequence[str], error: UnicodeDecodeError) -> BadLine:
    raw: bytes = error.object
    where = f" in one of its columns ({', '.join(columns)})" if len(columns) > 1 else ""
    return BadLine(
        line=number,
        reason=f"expected UTF-8, got byte 0x{raw[error.start]:02x} at position {error.start}{where}",
        excerpt=excerpt(raw),
    )
