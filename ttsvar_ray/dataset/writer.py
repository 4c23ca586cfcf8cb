"""Chunks of outcomes to Parquet parts.

Comes in: whole chunks, each prompt done or given up. Goes out: a part of data, a part of the trace, dead
letters. A part never appears under its final name before it is whole, and no row is ever in two places or in
none.

Invariant: `data/part-N.parquet` exists exactly if chunk N is whole.

    a new part          dead letters, manifest, trace, part: what the part vouches for is there
    one is finished     the same, from what was kept of it; then what was kept is deleted, part before trace
    part is kept        trace, part, both in `partial/`: what is finished of a chunk that is not whole
    a part is there     manifest, trace, part, manifest, dead letters: a row is always in the part or has a
                        letter, and as long as the manifest names two contents the letters are there

A part is replaced as a whole, so that at any moment it holds the rows from before or those and the new ones.
A prompt whose row is in the part is done, whatever a dead letter says; `failed_rows` removes letters that a
killed rewrite left behind.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ttsvar_ray.columns import from_held, held
from ttsvar_ray.dataset.accounting import SELECTION_COLUMNS, PlanRecord
from ttsvar_ray.dataset.contents import PartTotals, opened, rows_in
from ttsvar_ray.dataset.dead_letters import replace_letters, write_failed_part
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.part_manifest import FileSum, PartManifest, read_part_manifest, settle
from ttsvar_ray.dataset.rows import RowContext, rows_of
from ttsvar_ray.dataset.trace import write_trace
from ttsvar_ray.errors import LostRowsError, OutputError
from ttsvar_ray.results import PromptFailure, PromptResult
from ttsvar_ray.storage.location import Location

ROW_GROUP_BYTES = 96_000_000
"""Image bytes in one row group: readers fetch whole groups, and the common viewer refuses 300 MB."""

ROW_GROUP_ROWS = 10_000

_ROWS_READ_AT_A_TIME = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkReport:
    """What one chunk added to the output."""

    chunk_index: int
    prompts: int
    images: int
    failed: int
    part_bytes: int


def _payload_bytes(payload: Any) -> bytes:
    """Return a payload that is bytes already."""
    if not isinstance(payload, bytes):
        raise TypeError(f"image payload: expected bytes, got {type(payload).__name__}")
    return payload


def write_chunk(
    layout: OutputLayout,
    chunk_index: int,
    *,
    rows: range,
    finished: Sequence[PromptResult],
    failed: Sequence[PromptFailure],
    context: RowContext,
    resolve: Callable[[Any], bytes] = _payload_bytes,
) -> ChunkReport:
    """Write what became of the prompts of a chunk, with what was kept of it, or put it into its part.

    A part that was rewritten, or finished in a later session, is what it would be, byte for byte, if its
    prompts had not failed and nobody had stopped.

    Args:
        chunk_index: names the files.
        rows: the rows of the prompt set that this chunk is made of.
        finished, failed: every prompt of `rows` once, in any order; where the part is there, those that ran
            again; where some were kept, all others.
        resolve: turns the payload of an image into its bytes, one image at a time.

    Raises:
        DamagedImageError: bytes of an image changed on their way.
        LostRowsError: a row is missing, comes twice or is of another chunk.
        OutputError: the part that is there is damaged, or has other columns than this version writes.
    """
    part, trace, letters = (
        place(chunk_index) for place in (layout.data_part, layout.trace_part, layout.failed_part)
    )
    manifest = layout.manifest_part(chunk_index)
    is_there = part.is_file()
    kept = layout.partial_part(chunk_index)
    is_kept = not is_there and kept.is_file()
    ran = sorted([*(done.prompt.row for done in finished), *(lost.prompt.row for lost in failed)])
    known = {*ran, *(rows_in(kept) if is_kept else ())}
    if len(set(ran)) != len(ran) or not set(ran) <= set(rows) or (known != set(rows) and not is_there):
        some = "rows of " if is_there else "each row of "
        raise LostRowsError(f"chunk {chunk_index}: expected {some}{rows} once, got rows {ran}")
    ordered = sorted(finished, key=lambda outcome: outcome.prompt.row)
    present, present_trace = (
        (part, trace) if is_there else (kept, layout.partial_trace(chunk_index)) if is_kept else (None, None)
    )
    images = 0
    if not is_there:
        write_failed_part(letters, failed)
    with contextlib.ExitStack() as commit:
        # Closed in reverse: the trace gets its name before the part, and both after the manifest.
        rows_file: Path | None = None
        if ordered or not is_there:
            rows_file = commit.enter_context(part.replacing())
            images = write_part(
                rows_file, ordered, context=context, resolve=resolve, present=present, replaced=ran
            )
        staged = commit.enter_context(trace.replacing())
        selections = write_trace(staged, ordered, present=present_trace, replaced=ran)
        selected = FileSum.of(staged, rows=selections)
        data: FileSum | None = None
        if rows_file is not None:
            data = FileSum.of(rows_file, rows=images, ran=_what_ran(context.plan, rows_file, staged))
        before = read_part_manifest(manifest) if is_there else None
        if before is not None:
            before.replaced_by(data=data, trace=selected).write(manifest)
        elif data is not None:
            PartManifest(data=data, trace=selected).write(manifest)
    if is_there:
        settle(layout, chunk_index)
        replace_letters(letters, failed, ran=ran)
    elif is_kept:
        _forget_partial(layout, chunk_index)
    return ChunkReport(
        chunk_index=chunk_index,
        prompts=len(finished),
        images=images,
        failed=len(failed),
        part_bytes=part.size() or 0,
    )


def _what_ran(plan: PlanRecord | None, rows: Path, selections: Path) -> tuple[int, ...]:
    if plan is None:
        return ()
    with pq.ParquetFile(rows) as of_rows, pq.ParquetFile(selections) as of_selections:
        return plan.ran(
            of_rows.read(columns=list(plan.row_columns)), of_selections.read(columns=list(SELECTION_COLUMNS))
        )


def write_partial(
    layout: OutputLayout,
    chunk_index: int,
    *,
    rows: range,
    finished: Sequence[PromptResult],
    context: RowContext,
    resolve: Callable[[Any], bytes] = _payload_bytes,
) -> None:
    """Keep finished prompts of a chunk that is not whole, beside those that were kept before.

    Prompts that ran again go into their part at once. Arguments are those of `write_chunk`.
    """
    if layout.data_part(chunk_index).is_file():
        write_chunk(
            layout, chunk_index, rows=rows, finished=finished, failed=(), context=context, resolve=resolve
        )
        return
    kept, trace = layout.partial_part(chunk_index), layout.partial_trace(chunk_index)
    ordered = sorted(finished, key=lambda outcome: outcome.prompt.row)
    ran = [outcome.prompt.row for outcome in ordered]
    with contextlib.ExitStack() as commit:
        # Closed in reverse: the trace gets its name before the part that vouches for it.
        staged = commit.enter_context(kept.replacing())
        present = kept if kept.is_file() else None
        write_part(staged, ordered, context=context, resolve=resolve, present=present, replaced=ran)
        write_trace(commit.enter_context(trace.replacing()), ordered, present=trace, replaced=ran)


def partial_rows(layout: OutputLayout, committed: Collection[int]) -> dict[int, frozenset[int]]:
    """Return the rows that were kept of each chunk that is not committed; needs the lock.

    What was kept of committed chunks is deleted: a killed run left it.

    Raises:
        OutputError: one is damaged.
    """
    layout.partial_folder.remove_leftovers()
    found: dict[int, frozenset[int]] = {}
    for index, kept in layout.partial_parts().items():
        if index in committed:
            _forget_partial(layout, index)
        else:
            found[index] = frozenset(rows_in(kept))
    for name in layout.partial_folder.names():
        if name not in {file.name for index in found for file in _partial_files(layout, index)}:
            (layout.partial_folder / name).delete()
    layout.partial_folder.remove_empty_folder()
    return found


def _forget_partial(layout: OutputLayout, chunk_index: int) -> None:
    """Delete what was kept of a chunk."""
    for file in _partial_files(layout, chunk_index):
        file.delete()
    layout.partial_folder.remove_empty_folder()


def _partial_files(layout: OutputLayout, chunk_index: int) -> tuple[Location, Location]:
    return layout.partial_part(chunk_index), layout.partial_trace(chunk_index)


def write_part(
    path: Path,
    finished: Iterable[PromptResult],
    *,
    context: RowContext,
    resolve: Callable[[Any], bytes] = _payload_bytes,
    present: Location | None = None,
    replaced: Collection[int] = (),
) -> int:
    """Write one Parquet part to a local file, a row per kept image in the order given; return its rows.

    Only one row group of images is held in memory. A part without rows is valid: its chunk failed.

    Args:
        present: a part whose rows are in it, too; all are in prompt order then, as `finished` must be.
        replaced: rows of the prompt set that are not taken from `present`.
    """
    rows = rows_of(finished, context, resolve)
    if present is not None:
        before = _present_rows(present, context.schema, without=replaced)
        rows = heapq.merge(before, rows, key=lambda row: (row["row"], row["image_rank"]))
    return _write_rows(path, rows, context.schema)


def _present_rows(part: Location, schema: pa.Schema, *, without: Collection[int]) -> Iterator[dict[str, Any]]:
    # Bits that flipped in it must not get a new checksum.
    with opened(part) as parquet:
        if not parquet.schema_arrow.equals(schema):
            raise OutputError(
                f"{part}: expected the columns that this version writes, got those of another version; "
                "delete the part to have its prompts generated again"
            )
        for batch in parquet.iter_batches(_ROWS_READ_AT_A_TIME):
            arrays = [held(array, array.type) for array in batch.columns]
            rows = pa.RecordBatch.from_arrays(arrays, names=schema.names).to_pylist()
            yield from (row for row in rows if row["row"] not in without)


def _write_rows(path: Path, rows: Iterator[dict[str, Any]], schema: pa.Schema) -> int:
    """Write rows, in the order given, as one Parquet part; return how many.

    The bytes depend on the rows and on nothing else: not on where they come from.
    """
    totals = PartTotals()
    with _parquet_writer(path, schema) as writer:
        for group in _row_groups(rows):
            writer.write_table(_table(group, schema), row_group_size=len(group))
            for row in group:
                totals.observe(row)
        writer.add_key_value_metadata(totals.to_metadata())
    return totals.images


def _table(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    arrays = [from_held([row[field.name] for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _parquet_writer(path: Any, schema: pa.Schema) -> pq.ParquetWriter:
    # Encoded images and bits do not shrink: a dictionary and a codec would only cost time.
    raw = {"image", "bits"}
    small = [field.name for field in schema if not pa.types.is_nested(field.type) and field.name not in raw]
    codecs = {
        column.path: "NONE" if column.path.partition(".")[0] in raw else "ZSTD" for column in _leaves(schema)
    }
    return pq.ParquetWriter(
        path,
        schema,
        compression=codecs,
        use_dictionary=small,
        write_statistics=small,
        write_page_index=True,
        write_page_checksum=True,
    )


def _leaves(schema: pa.Schema) -> list[Any]:
    """Return the Parquet leaf columns of an arrow schema, which are what codecs are named by."""
    sink = pa.BufferOutputStream()
    pq.write_metadata(schema, sink)
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(index) for index in range(len(parquet.names))]


def _row_groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        image_bytes = len(row["image"]["bytes"])
        if group and (size + image_bytes > ROW_GROUP_BYTES or len(group) == ROW_GROUP_ROWS):
            yield group
            group, size = [], 0
        group.append(row)
        size += image_bytes
    if group:
        yield group
