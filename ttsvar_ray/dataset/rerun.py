"""Prompts that were given up, run again: which they are, and how they come back into their parts.

A part is replaced as a whole, so that at any moment it holds the rows from before or those and the new ones.
Order of a rewrite: trace, part, dead letters. A prompt whose row is in the part is done, whatever a dead
letter says; `failed_rows` removes letters that a killed rewrite left behind.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ttsvar_ray.dataset.dead_letters import read_letters, replace_letters, write_letters
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.outcomes import FinishedPrompt, GivenUpPrompt
from ttsvar_ray.dataset.summary import map_files
from ttsvar_ray.dataset.totals import rows_in
from ttsvar_ray.dataset.trace import merge_trace_part
from ttsvar_ray.dataset.writer import (
    ChunkReport,
    RowContext,
    part_rows,
    part_schema,
    payload_bytes,
    write_rows,
)
from ttsvar_ray.errors import LostRowsError, OutputError
from ttsvar_ray.storage import Location

_ROWS_READ_AT_A_TIME = 16


def failed_rows(layout: OutputLayout, committed: Collection[int]) -> dict[int, tuple[int, ...]]:
    """Return the rows without images of each committed chunk that has dead letters; needs the lock.

    A letter that says `"retry": false` is left alone. Letters of rows that have images are removed: they are
    what a rewrite that was killed left.
    """
    parts = {index: file for index, file in layout.failed_parts().items() if index in committed}

    def look(letters_file: Location) -> tuple[int, ...]:
        index = int(letters_file.name.removeprefix("part-").partition(".")[0])
        letters = read_letters(letters_file)
        done = rows_in(layout.data_part(index))
        still = [letter for letter in letters if letter["row"] not in done]
        if len(still) < len(letters):
            write_letters(letters_file, still)
        return tuple(letter["row"] for letter in still if letter.get("retry", True))

    found = zip(parts, map_files(look, parts.values()), strict=True)
    return {index: rows for index, rows in found if rows}


def rewrite_chunk(
    layout: OutputLayout,
    chunk_index: int,
    *,
    rows: range,
    finished: Sequence[FinishedPrompt],
    failed: Sequence[GivenUpPrompt],
    context: RowContext,
    resolve: Callable[[Any], bytes] = payload_bytes,
) -> ChunkReport:
    """Write a chunk of which some prompts ran again: what was there, and what is new, in prompt order.

    The part is what it would be, byte for byte, if the prompts had not failed before.

    Args:
        layout: the output folder.
        chunk_index: names the files.
        rows: the rows of the prompt set that this chunk is made of.
        finished, failed: every prompt that ran again once, in any order.
        context: what all rows of the run have in common.
        resolve: turns the payload of an image into its bytes, one image at a time.

    Raises:
        OutputError: the part is damaged, or has other columns than this version writes.
        LostRowsError: a row comes twice or is of another chunk.
    """
    again = sorted([*(done.prompt.row for done in finished), *(lost.prompt.row for lost in failed)])
    if len(set(again)) != len(again) or not set(again) <= set(rows):
        raise LostRowsError(f"chunk {chunk_index}: expected rows of {rows}, each once, got {again}")
    part = layout.data_part(chunk_index)
    ordered = sorted(finished, key=lambda outcome: outcome.prompt.row)
    merge_trace_part(layout.trace_part(chunk_index), ordered, replaced=again)
    new = {outcome.prompt.row for outcome in ordered}
    images = 0
    if ordered:
        schema = part_schema(context)
        merged = heapq.merge(
            _present_rows(part, schema, without=new),
            part_rows(ordered, context, resolve),
            key=lambda row: (row["row"], row["image_rank"]),
        )
        images = write_rows(part, merged, schema)
    replace_letters(layout.failed_part(chunk_index), failed, ran=again)
    return ChunkReport(
        chunk_index=chunk_index,
        prompts=len(finished),
        images=images,
        failed=len(failed),
        part_bytes=part.size() or 0,
    )


def _present_rows(part: Location, schema: pa.Schema, *, without: Collection[int]) -> Iterator[dict[str, Any]]:
    with part.open_arrow() as file, pq.ParquetFile(file) as parquet:
        if not parquet.schema_arrow.equals(schema):
            raise OutputError(
                f"{part}: expected the columns that this version writes, got those of another version; "
                "delete the part to have its prompts generated again"
            )
        for batch in parquet.iter_batches(_ROWS_READ_AT_A_TIME):
            yield from (row for row in batch.to_pylist() if row["row"] not in without)
