"""Totals of one part, in the part's own footer: a summary of a run reads no rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ttsvar_ray.errors import OutputError, StorageError
from ttsvar_ray.storage import Location

_KEY = b"ttsvar_ray.totals"


@dataclass(slots=True, kw_only=True)
class PartTotals:
    """What is in one part, or in several.

    Attributes:
        prompts: prompts with images.
        images: rows.
        reward_sum: over the best image of each prompt.
    """

    prompts: int = 0
    images: int = 0
    reward_sum: float = 0.0

    def observe(self, row: Mapping[str, Any]) -> None:
        """Count a row. The reward counts as its column holds it: float32."""
        self.images += 1
        if row["image_rank"] == 0:
            self.prompts += 1
            self.reward_sum += float(np.float32(row["reward"]))

    def add(self, other: PartTotals) -> None:
        """Count another part."""
        self.prompts += other.prompts
        self.images += other.images
        self.reward_sum += other.reward_sum

    def to_metadata(self) -> dict[bytes, bytes]:
        """Return the totals as metadata of a Parquet file."""
        totals = {"prompts": self.prompts, "images": self.images, "reward_sum": self.reward_sum}
        return {_KEY: json.dumps(totals).encode()}


def read_totals(part: Location) -> PartTotals:
    """Return the totals of a part.

    They stand in its footer; a part that another program has rewritten has none, and its rows are counted.

    Raises:
        OutputError: it is not a whole Parquet file.
    """
    try:
        with part.open_arrow() as file, pq.ParquetFile(file) as parquet:
            metadata = parquet.metadata.metadata or {}
            if _KEY in metadata:
                return PartTotals(**json.loads(metadata[_KEY]))
            table = parquet.read(columns=["image_rank", "reward"])
    except (pa.ArrowException, OSError, StorageError) as error:
        raise damaged(part, error) from None
    best = table.filter(pc.equal(table["image_rank"], 0))["reward"]
    return PartTotals(prompts=len(best), images=table.num_rows, reward_sum=pc.sum(best).as_py() or 0.0)


def rows_in(part: Location) -> set[int]:
    """Return the rows of the prompt set that have images in a part.

    Raises:
        OutputError: it is not a whole Parquet file.
    """
    try:
        with part.open_arrow() as file, pq.ParquetFile(file) as parquet:
            return set(parquet.read(columns=["row"])["row"].to_pylist())
    except (pa.ArrowException, OSError, StorageError) as error:
        raise damaged(part, error) from None


def damaged(part: Location | Path, reason: object) -> OutputError:
    """Return the error of a part that cannot be read."""
    return OutputError(
        f"{part}: not a whole Parquet file ({str(reason).splitlines()[0]}); "
        "delete it to have its prompts generated again"
    )
