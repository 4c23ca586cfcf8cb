"""The trace table: one row per selection of a search, for reports."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ttsvar_ray.dataset.outcomes import FinishedPrompt
from ttsvar_ray.dataset.schema import trace_schema
from ttsvar_ray.storage import Location


def write_trace_part(location: Location, finished: Iterable[FinishedPrompt]) -> None:
    """Write the selections of these prompts, in the order given, atomically."""
    _write(location, _table(finished))


def merge_trace_part(
    location: Location, finished: Iterable[FinishedPrompt], *, replaced: Collection[int]
) -> None:
    """Put the selections of prompts that ran again into the trace of their chunk, in prompt order.

    Args:
        location: the trace as it is.
        finished: what is new.
        replaced: rows whose selections, of a try that was cut short, are dropped.
    """
    with location.open_arrow() as file:
        present = pq.read_table(file)
    kept = present.filter(pc.invert(pc.is_in(present["row"], pa.array(list(replaced), pa.int64()))))
    merged = pa.concat_tables([kept.cast(trace_schema()), _table(finished)])
    _write(location, merged.take(pc.sort_indices(merged["row"])))


def _write(location: Location, table: Any) -> None:
    with location.replacing() as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _table(finished: Iterable[FinishedPrompt]) -> Any:
    rows = [
        {
            "row": outcome.prompt.row,
            "prompt_id": outcome.prompt.prompt_id,
            "ordinal": outcome.prompt.ordinal,
            "scale_index": record.scale_index,
            "kind": record.kind,
            "ancestor_index": list(record.ancestor_index),
            "rewards": list(record.rewards),
            "log_weights": list(record.log_weights),
            "ess": record.ess,
            "labels": list(record.labels),
            "placement": list(record.placement),
            "moved": record.moved,
            "reason": record.reason,
        }
        for outcome in finished
        for record in outcome.trace
    ]
    return pa.Table.from_pylist(rows, schema=trace_schema())
