"""The trace table: one row per selection of a search. Its columns are stated here, once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ttsvar_ray.errors import OutputError
from ttsvar_ray.results import PromptResult, SelectionRecord
from ttsvar_ray.storage.location import Location
from ttsvar_ray.types import Prompt

_COLUMNS_OF = {"resample": ("log_weights", "ess"), "cluster": ("labels",)}
"""Numbers of two operators that have a column. All others are in `numbers`, whatever they are called."""


def _own_column(record: SelectionRecord, name: str, missing: tuple[float, ...] = ()) -> tuple[float, ...]:
    return record.numbers.get(name, missing) if name in _COLUMNS_OF.get(record.kind, ()) else missing


_COLUMNS: tuple[tuple[str, pa.DataType, Callable[[Prompt, SelectionRecord], Any]], ...] = (
    ("row", pa.int64(), lambda prompt, record: prompt.row),
    ("prompt_id", pa.string(), lambda prompt, record: prompt.prompt_id),
    ("ordinal", pa.int32(), lambda prompt, record: prompt.ordinal),
    ("round", pa.int32(), lambda prompt, record: record.round_index),
    ("scale_index", pa.int32(), lambda prompt, record: record.scale_index),
    ("kind", pa.string(), lambda prompt, record: record.kind),
    ("ancestor_index", pa.list_(pa.int32()), lambda prompt, record: record.ancestor_index),
    ("rewards", pa.list_(pa.float32()), lambda prompt, record: record.rewards),
    ("log_weights", pa.list_(pa.float64()), lambda prompt, record: _own_column(record, "log_weights")),
    ("ess", pa.float64(), lambda prompt, record: _own_column(record, "ess", (float("nan"),))[0]),
    (
        "labels",
        pa.list_(pa.int32()),
        lambda prompt, record: [int(label) for label in _own_column(record, "labels")],
    ),
    ("placement", pa.list_(pa.string()), lambda prompt, record: record.placement),
    ("moved", pa.int32(), lambda prompt, record: record.moved),
    ("reason", pa.string(), lambda prompt, record: record.reason),
    (
        # A list of pairs: `datasets` reads no arrow maps.
        "numbers",
        pa.list_(pa.struct([("name", pa.string()), ("values", pa.list_(pa.float64()))])),
        lambda prompt, record: [
            {"name": name, "values": values}
            for name, values in sorted(record.numbers.items())
            if name not in _COLUMNS_OF.get(record.kind, ())
        ],
    ),
    # [trajectory][scale]: with them any picture of the search can be drawn again; empty where not kept.
    ("bits", pa.list_(pa.list_(pa.binary())), lambda prompt, record: record.bits),
)


def trace_schema() -> pa.Schema:
    """Return the schema of the trace parts: one row per selection."""
    return pa.schema([(name, kind) for name, kind, _ in _COLUMNS])


def selection_records(table: pa.Table) -> dict[int, list[SelectionRecord]]:
    """Return the selections of a trace, as `trace_schema` has them, by row of the prompt set."""
    records: dict[int, list[SelectionRecord]] = {}
    for row in table.to_pylist():
        own = {name: row[name] for name in _COLUMNS_OF.get(row["kind"], ())}
        numbers = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in own.items()}
        numbers |= {one["name"]: tuple(one["values"]) for one in row.get("numbers") or ()}
        record = SelectionRecord(
            prompt_key="",
            scale_index=row["scale_index"],
            kind=row["kind"],
            ancestor_index=tuple(row["ancestor_index"]),
            rewards=tuple(row["rewards"]),
            numbers=numbers,
            placement=tuple(row["placement"]),
            moved=row["moved"],
            reason=row["reason"],
            round_index=row.get("round") or 0,
            bits=tuple(map(tuple, row.get("bits") or ())),
        )
        records.setdefault(row["row"], []).append(record)
    return records


def write_trace(
    path: Path,
    finished: Iterable[PromptResult],
    *,
    present: Location | None = None,
    replaced: Collection[int] = (),
) -> int:
    """Write the selections of these prompts, in the order given, to a local file; return its rows.

    Args:
        present: a trace whose selections are in it, too; all are in prompt order then. One of an earlier
            version may lack columns, which are empty then, and one that somebody has deleted is begun anew.
        replaced: rows whose selections, of a try that was cut short, are not taken from `present`.

    Raises:
        OutputError: the trace that is there is damaged.
    """
    table = _table(finished)
    if present is not None:
        before = _read(present)
        kept = before.filter(pc.invert(pc.is_in(before["row"], pa.array(list(replaced), pa.int64()))))
        table = pa.concat_tables([kept.select(trace_schema().names).cast(trace_schema()), table])
        table = table.take(pc.sort_indices(table["row"]))
    with pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True) as writer:
        if len(table):  # Readers refuse a row group without rows.
            writer.write_table(table)
    return len(table)


def _read(present: Location) -> Any:
    """Return a trace with all columns; without rows where there is none."""
    table = trace_schema().empty_table()
    try:
        with contextlib.suppress(FileNotFoundError), present.open_arrow() as file:
            table = pq.read_table(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise OutputError(
            f"{present}: not a whole Parquet file ({str(error).splitlines()[0]}); delete it to have the "
            "trace of this part begun anew"
        ) from None
    for name, kind, _ in _COLUMNS:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), kind))
    return table


def _table(finished: Iterable[PromptResult]) -> Any:
    rows = [
        {name: value(outcome.prompt, record) for name, _, value in _COLUMNS}
        for outcome in finished
        for record in outcome.trace
    ]
    return pa.Table.from_pylist(rows, schema=trace_schema())
