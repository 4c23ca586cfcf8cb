"""The trace table: one row per selection of a search, for reports."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ttsvar_ray.dataset.atomic import replacing
from ttsvar_ray.dataset.outcomes import FinishedPrompt
from ttsvar_ray.dataset.schema import trace_schema


def write_trace_part(path: Path, finished: Iterable[FinishedPrompt]) -> None:
    """Write the selections of these prompts, in the order given, atomically."""
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
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=trace_schema()), temporary, compression="zstd")
