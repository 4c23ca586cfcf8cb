"""What an output folder holds, from its files alone: the parts are the only truth about what is done."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ttsvar_ray.dataset.accounting import run_cost
from ttsvar_ray.dataset.dead_letters import count_lines, read_letters, write_letters
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest
from ttsvar_ray.dataset.part_manifest import read_part_manifest, settle
from ttsvar_ray.dataset.sessions import read_sessions
from ttsvar_ray.errors import LostRowsError, OutputError, StorageError
from ttsvar_ray.results import RunCost
from ttsvar_ray.storage.location import Location

_KEY = b"ttsvar_ray.totals"
"""Totals of a part in its own footer: a summary of a run reads no rows."""

_PARQUET_MAGIC = b"PAR1"

_READERS = 16
"""Small files read at a time: an object store answers slowly, but many at once."""

_BATCH = 1024

_CHUNKS_SHOWN = 5
_ROWS_SHOWN = 10

_Result = TypeVar("_Result")


@dataclass(slots=True, kw_only=True)
class PartTotals:
    """What is in one part, or in several.

    Attributes:
        prompts: prompts with images.
        images: rows.
        reward_sum: over the best image of each prompt.
        cut: prompts of which the model read the beginning only.
        cost_sum: images that the prompts of an adaptive search have cost, in footers alone; 0 of others.
    """

    prompts: int = 0
    images: int = 0
    reward_sum: float = 0.0
    cut: int = 0
    cost_sum: float = 0.0

    def observe(self, row: Mapping[str, Any]) -> None:
        """Count a row. The reward counts as its column holds it: float32."""
        self.images += 1
        if row["image_rank"] == 0:
            self.prompts += 1
            self.reward_sum += float(np.float32(row["reward"]))
            self.cut += row["text_truncated"]
            self.cost_sum += float(row.get("cost_images") or 0.0)

    def add(self, other: PartTotals) -> None:
        """Count another part."""
        self.prompts += other.prompts
        self.images += other.images
        self.reward_sum += other.reward_sum
        self.cut += other.cut

    def to_metadata(self) -> dict[bytes, bytes]:
        """Return the totals as metadata of a Parquet file."""
        counts = dataclasses.asdict(self)
        if not self.cost_sum:
            del counts["cost_sum"]
        return {_KEY: json.dumps(counts).encode()}


def _read_totals(part: Location) -> PartTotals:
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
            table = parquet.read(columns=["image_rank", "reward", "text_truncated"])
        best = table.filter(pc.equal(table["image_rank"], 0))
        return PartTotals(
            prompts=len(best),
            images=table.num_rows,
            reward_sum=pc.sum(best["reward"]).as_py() or 0.0,
            cut=pc.sum(best["text_truncated"]).as_py() or 0,
        )
    except (pa.ArrowException, OSError, StorageError, ValueError, TypeError) as error:
        raise _damaged(part, error) from None


def read_columns(layout: OutputLayout, columns: Sequence[str]) -> pa.Table:
    """Return some columns of all parts, in the order of the prompts.

    Raises:
        OutputError: there is no part, or one is not a whole Parquet file.
    """

    def read(part: Location) -> pa.Table:
        with opened(part, columns) as parquet:
            return parquet.read(columns=list(columns))

    tables = list(map_files(read, layout.data_parts().values()))
    if not tables:
        raise OutputError(f"{layout.root}: expected images, found no part in data/")
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException:
        raise OutputError(
            f"{layout.root}: expected one kind of columns in all parts, got several; `ttsvar-ray check` says "
            "which files are not what was written"
        ) from None


def rows_in(part: Location) -> set[int]:
    """Return the rows of the prompt set that have images in a part.

    Raises:
        OutputError: it is not a whole Parquet file.
    """
    with opened(part, ["row"]) as parquet:
        return set(parquet.read(columns=["row"])["row"].to_pylist())


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSummary:
    """Totals over all sessions of a run.

    Attributes:
        chunks: parts that are there.
        prompts: prompts with images.
        images: rows.
        failed: prompts that were given up.
        bad_lines: lines of the prompt file that hold no prompt.
        mean_reward: over the best image of each prompt; NaN without any.
        cut: prompts of which the model read the beginning only.
    """

    chunks: int
    prompts: int
    images: int
    failed: int
    bad_lines: int
    mean_reward: float
    cut: int


def committed_chunks(layout: OutputLayout) -> frozenset[int]:
    """Return the chunks whose parts are there.

    Raises:
        OutputError: a part is cut short, for example by an interrupted copy of the folder.
    """
    parts = layout.data_parts()
    for part in parts.values():
        # An object store has no halves of objects, and asking for each end would take it minutes.
        if (path := part.local_path) is not None:
            _check_end(path)
    return frozenset(parts)


def _check_end(path: Path) -> None:
    """Raise `OutputError` unless a file ends as Parquet does: whatever is cut short does not."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - len(_PARQUET_MAGIC), 0))
        end = file.read()
    if end != _PARQUET_MAGIC:
        raise _damaged(path, f"it does not end with {_PARQUET_MAGIC.decode()}")


def failed_rows(layout: OutputLayout, committed: Collection[int]) -> dict[int, tuple[int, ...]]:
    """Return the rows without images of each committed chunk that has dead letters; needs the lock.

    A letter that says `"retry": false` is left alone. Letters of rows that have images are removed: they are
    what a rewrite that was killed left, as is a part's manifest that names two contents.
    """
    parts = {index: file for index, file in layout.failed_parts().items() if index in committed}

    def look(letters_file: Location) -> tuple[int, ...]:
        index = int(letters_file.name.removeprefix("part-").partition(".")[0])
        letters = read_letters(letters_file)
        settle(layout, index)
        done = rows_in(layout.data_part(index))
        still = [letter for letter in letters if letter["row"] not in done]
        if len(still) < len(letters):
            write_letters(letters_file, still)
        return tuple(letter["row"] for letter in still if letter.get("retry", True))

    found = zip(parts, map_files(look, parts.values()), strict=True)
    return {index: rows for index, rows in found if rows}


def rows_added(
    layout: OutputLayout, manifest: RunManifest, committed: Collection[int]
) -> dict[int, tuple[int, ...]]:
    """Return the rows of committed chunks that `--extend` added since they were written: of a last part."""
    each = manifest.rows_per_chunk
    added = {}
    for index in {count // each for count in manifest.extended if count % each}.intersection(committed):
        rows = set(range(index * each, min((index + 1) * each, manifest.prompt_count)))
        letters = {letter["row"] for letter in read_letters(layout.failed_part(index))}
        if missing := rows - rows_in(layout.data_part(index)) - letters:
            added[index] = tuple(sorted(missing))
    return added


def summarise_output(layout: OutputLayout, chunks: Mapping[int, range] | None = None) -> OutputSummary:
    """Count what is there, from the parts' footers, a few at a time.

    Args:
        chunks: the rows of each chunk that must be there by now, whole; no others are counted. None: all.

    Raises:
        LostRowsError: a row of `chunks` has neither images nor a dead letter, or both.
        OutputError: a part is damaged.
    """
    parts, letters = (
        {index: file for index, file in found.items() if chunks is None or index in chunks}
        for found in (layout.data_parts(), layout.failed_parts())
    )
    totals = PartTotals()
    accounted: dict[int, int] = {}
    for index, each in zip(parts, map_files(_read_totals, parts.values()), strict=True):
        totals.add(each)
        accounted[index] = each.prompts
    failed = 0
    for index, count in zip(letters, map_files(count_lines, letters.values()), strict=True):
        failed += count
        accounted[index] = accounted.get(index, 0) + count
    wrong = {index: rows for index, rows in (chunks or {}).items() if accounted.get(index, 0) != len(rows)}
    if wrong:
        raise LostRowsError(_lost(layout, wrong))
    return OutputSummary(
        chunks=len(parts),
        prompts=totals.prompts,
        images=totals.images,
        failed=failed,
        bad_lines=count_lines(layout.bad_lines_file),
        mean_reward=totals.reward_sum / totals.prompts if totals.prompts else math.nan,
        cut=totals.cut,
    )


def read_cost(layout: OutputLayout, manifest: RunManifest) -> RunCost | None:
    """Return what the committed prompts of a run have cost, from the manifests of its parts; no row is read.

    None where the run does not say what its plan is.

    Raises:
        OutputError: a line of `sessions.jsonl` is no session.
    """
    if manifest.plan is None:
        return None

    def told(part: Location) -> tuple[int, tuple[int, ...]]:
        try:
            found = read_part_manifest(part)
        except OutputError:  # `check` names it
            found = None
        return (0, ()) if found is None else (found.data.rows, found.data.ran)

    manifests = [layout.manifest_part(index) for index in layout.data_parts()]
    seconds = [session.device_seconds for session in read_sessions(layout)]
    ran = list(map_files(told, manifests))
    return run_cost(manifest.plan, ran, device_seconds=seconds, content=manifest.content)


def _lost(layout: OutputLayout, wrong: Mapping[int, range]) -> str:
    """Return which rows of some chunks are not accounted for once."""
    lines = []
    for index, rows in islice(wrong.items(), _CHUNKS_SHOWN):
        part = layout.data_part(index)
        done = rows_in(part) if part.is_file() else set()
        failed = Counter(letter["row"] for letter in read_letters(layout.failed_part(index)))
        missing = sorted(set(rows) - done - set(failed))
        doubled = sorted(row for row, count in failed.items() if row in done or count > 1)
        if missing:
            lines.append(f"  {part}: neither images nor a dead letter for {_shown(missing)}")
        if doubled:
            lines.append(f"  {layout.failed_part(index)}: one dead letter too many for {_shown(doubled)}")
        if not missing and not doubled:
            lines.append(f"  {part}: expected prompts of {rows} alone, each once; the part holds others")
    if len(wrong) > _CHUNKS_SHOWN:
        lines.append(f"  and {len(wrong) - _CHUNKS_SHOWN} parts more")
    return (
        f"{layout.root}: rows are lost or doubled in {len(wrong)} part{'s' * (len(wrong) != 1)}:\n"
        + "\n".join(lines)
        + "\nDelete these files in data/ to have their prompts generated again by the same command."
    )


def _shown(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - _ROWS_SHOWN} more" if len(rows) > _ROWS_SHOWN else ""
    return f"row{'s' * (len(rows) != 1)} {', '.join(map(str, rows[:_ROWS_SHOWN]))}{more}"


def map_files(read: Callable[[Location], _Result], files: Iterable[Location]) -> Iterator[_Result]:
    """Read many small files, several at a time; results come in order and are not kept."""
    waiting = iter(files)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="output-reader") as pool:
        while batch := list(islice(waiting, _BATCH)):
            yield from pool.map(read, batch)


@contextlib.contextmanager
def opened(part: Location, columns: Iterable[str] = ()) -> Iterator[pq.ParquetFile]:
    """Open a part, whose pages are compared with their checksums as they are read.

    Args:
        columns: that must be there.

    Raises:
        OutputError: what is read of it is not of a whole Parquet file, or it is another program's.
    """
    try:
        with part.open_arrow() as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            absent = set(columns).difference(parquet.schema_arrow.names)
            if absent:
                raise OutputError(
                    f"{part}: expected the images of a run, found no column {min(absent)!r}; "
                    "`ttsvar-ray check` says which files are not what was written"
                )
            yield parquet
    except (pa.ArrowException, OSError, StorageError) as error:
        raise _damaged(part, error) from None


def _damaged(part: Location | Path, reason: object) -> OutputError:
    """Return the error of a part that cannot be read."""
    return OutputError(
        f"{part}: not a whole Parquet file ({str(reason).splitlines()[0]}); "
        "delete it to have its prompts generated again"
    )
