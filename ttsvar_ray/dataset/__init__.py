"""Results to a folder of Parquet parts that can be continued and opened as a data set."""

from __future__ import annotations

from ttsvar_ray.dataset.contents import (
    OutputSummary,
    committed_chunks,
    failed_rows,
    read_cost,
    rows_without_outcome,
    summarise_output,
)
from ttsvar_ray.dataset.dead_letters import write_bad_lines
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.lock import OutputLock, guarded
from ttsvar_ray.dataset.manifest import RunManifest, read_manifest, read_run
from ttsvar_ray.dataset.output import check_output, fresh_output, open_output
from ttsvar_ray.dataset.rows import RowContext
from ttsvar_ray.dataset.schema import CarriedColumn, carried_columns, data_schema
from ttsvar_ray.dataset.sessions import SessionLog
from ttsvar_ray.dataset.trace import trace_schema
from ttsvar_ray.dataset.writer import (
    ChunkReport,
    partial_rows,
    write_chunk,
    write_part,
    write_partial,
)

__all__ = [
    "CarriedColumn",
    "ChunkReport",
    "OutputLayout",
    "OutputLock",
    "OutputSummary",
    "RowContext",
    "RunManifest",
    "SessionLog",
    "carried_columns",
    "check_output",
    "committed_chunks",
    "data_schema",
    "failed_rows",
    "fresh_output",
    "guarded",
    "open_output",
    "partial_rows",
    "read_cost",
    "read_manifest",
    "read_run",
    "rows_without_outcome",
    "summarise_output",
    "trace_schema",
    "write_bad_lines",
    "write_chunk",
    "write_part",
    "write_partial",
]
