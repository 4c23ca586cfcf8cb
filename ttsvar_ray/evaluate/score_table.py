"""Side tables of a run: what scorers say of its images, beside the data, which stay as they are.

    OUTPUT/data/part-00007.parquet            the images
    OUTPUT/scores/NAME/part-00007.parquet     row, prompt_id, ordinal, image_rank, NAME, NAME_percentile, ...

A part of a table says which bytes of its data part it belongs to and what its values rest on: the same
command goes on after the parts that are there, makes those again whose data changed, and refuses values of
another basis. Parts do not depend on who made them, so any number of workers may share them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.part_manifest import read_part_manifest, sha256_of
from ttsvar_ray.dataset.rows import image_rows
from ttsvar_ray.errors import OutputError, brief, doing
from ttsvar_ray.evaluate.scorers import Scorer, ScorerSpec
from ttsvar_ray.storage.location import Location
from ttsvar_ray.types import UInt8Array

_KEY = b"ttsvar_ray.scores"
_IMAGES_AT_A_TIME = 16
KEYS = ("row", "prompt_id", "ordinal", "image_rank")
"""What names an image, in every table."""


def _score_part_file(layout: OutputLayout, table: str, chunk: int) -> Location:
    """Return one part of a table."""
    return layout.root / "scores" / table / layout.data_part(chunk).name


def tables(layout: OutputLayout) -> list[str]:
    """Return the names of the tables that are there."""
    folder = layout.root / "scores"
    return sorted(name for name in folder.names() if (folder / name).is_folder())


def missing_parts(layout: OutputLayout, table: str, basis: Mapping[str, Any]) -> list[int]:
    """Return the chunks that have data and no scores yet, or scores of data that were replaced.

    Raises:
        OutputError: the table's values rest on something else.
    """
    missing = []
    for chunk in layout.data_parts():
        file = _score_part_file(layout, table, chunk)
        told = _told(file)
        if told is not None and told["basis"] != dict(basis):
            before = told["basis"]
            differ = [name for name in {**before, **basis} if before.get(name) != basis.get(name)]
            changes = "; ".join(f"{one}: {before.get(one)!r} there, {basis.get(one)!r} now" for one in differ)
            raise OutputError(
                f"{file}: its scores rest on something else ({changes}); "
                f"delete {layout.root / 'scores' / table}"
            )
        if told is None or told["data"] != data_digest(layout, chunk):
            missing.append(chunk)
    return missing


def data_digest(layout: OutputLayout, chunk: int) -> str:
    """Return the sha256 of a data part, from its manifest where it has a settled one."""
    manifest = read_part_manifest(layout.manifest_part(chunk))
    if manifest is not None and manifest.is_settled:
        return manifest.data.sha256
    with layout.data_part(chunk).open() as file:
        return sha256_of(file)


class PartScorer:
    """Scores parts of a run, each by its scorer; holds the last one that it loaded.

    Args:
        root: URI or absolute path of the output.
    """

    def __init__(self, root: str) -> None:
        self._layout = OutputLayout(root)
        self._loaded: tuple[ScorerSpec, Scorer] | None = None

    def __call__(self, work: tuple[ScorerSpec, int]) -> int:
        """Score the images of a part, by its number, and write its part of the table; return how many.

        Raises:
            OutputError: the part is damaged, or an image cannot be read.
        """
        spec, chunk = work
        with doing(f"{spec.name}: part {chunk}"):
            return self._scored(spec, chunk)

    def _scored(self, spec: ScorerSpec, chunk: int) -> int:
        if self._loaded is None or self._loaded[0] != spec:
            self._loaded = None  # before the next one is: two may not fit
            self._loaded = (spec, spec.build())
        scorer, table, layout = self._loaded[1], spec.table, self._layout
        keys: dict[str, list[Any]] = {name: [] for name in KEYS}
        found: dict[str, list[Any]] = {name: [] for name in scorer.columns.names}
        told = {"basis": dict(spec.basis), "data": data_digest(layout, chunk)}
        for rows in image_rows(layout.data_part(chunk), _IMAGES_AT_A_TIME):
            images = [_pixels(row) for row in rows]
            for name, values in scorer.score(images, rows).items():
                if len(values) != len(rows):
                    raise ValueError(f"{table}: expected {len(rows)} values of {name}, got {len(values)}")
                found[name] += values
            for name in KEYS:
                keys[name] += [row[name] for row in rows]
        write_scores(layout, chunk, table, keys, found, scorer.columns, told)
        return len(keys["row"])


def write_scores(
    layout: OutputLayout,
    chunk: int,
    table: str,
    keys: Mapping[str, Sequence[Any]],
    found: Mapping[str, Sequence[Any]],
    columns: pa.Schema,
    told: Mapping[str, Any],
) -> None:
    """Write one part of a table; a score of a table's own name also gets its percentile within the prompt."""
    fields = [("row", pa.int64()), ("prompt_id", pa.string()), ("ordinal", pa.int32())]
    arrays = [pa.array(keys[name], kind) for name, kind in [*fields, ("image_rank", pa.int32())]]
    names = list(KEYS)
    for column in columns:
        arrays.append(pa.array(found[column.name], column.type))
        names.append(column.name)
        if column.name == table and pa.types.is_floating(column.type):
            arrays.append(pa.array(percentiles(keys["row"], found[table]), pa.float32()))
            names.append(f"{table}_percentile")
    written = pa.Table.from_arrays(arrays, names=names).replace_schema_metadata(
        {_KEY: json.dumps(dict(told), sort_keys=True).encode()}
    )
    with _score_part_file(layout, table, chunk).replacing() as staged:
        pq.write_table(written, staged, compression="zstd", write_page_checksum=True)


def percentiles(rows: Sequence[int], scores: Sequence[float | None]) -> list[float | None]:
    """Return the share of a prompt's other finite scores that each beats, ties half; None of one without."""
    known = np.array(scores, dtype=np.float64)  # None, of an image that is not judged, is NaN
    by_row: dict[int, list[int]] = {}
    for place in np.flatnonzero(np.isfinite(known)).tolist():
        by_row.setdefault(rows[place], []).append(place)
    result: list[float | None] = [None] * len(rows)
    for places in (own for own in by_row.values() if len(own) > 1):
        values = known[places]
        for place, value in zip(places, values, strict=True):
            beaten = (values < value).sum() + 0.5 * ((values == value).sum() - 1)
            result[place] = float(beaten / (len(values) - 1))
    return result


def read_scores(
    layout: OutputLayout, table: str, chunk: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return a part of a table.

    Raises:
        OutputError: it is not there, or is damaged.
    """
    file = _score_part_file(layout, table, chunk)
    try:
        with file.open_arrow() as stream:
            return pq.read_table(stream, columns=columns, page_checksum_verification=True)
    except FileNotFoundError:
        raise OutputError(
            f"{file}: expected the scores of this part, found none; run `ttsvar-ray score` again"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise OutputError(f"{file}: not a whole Parquet file ({brief(error)}); delete it") from None


def _pixels(row: Mapping[str, Any]) -> UInt8Array:
    try:
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise OutputError(
            f"image {row['image_rank']} of row {row['row']}: cannot be read ({brief(error)}); "
            "`ttsvar-ray check` says more"
        ) from error


def _told(file: Location) -> dict[str, Any] | None:
    """Return what a part of a table says of itself; None where there is none that can be read."""
    try:
        with file.open_arrow() as stream:
            metadata = pq.read_schema(stream).metadata or {}
        return dict(json.loads(metadata[_KEY]))
    except (FileNotFoundError, pa.ArrowException, OSError, KeyError, ValueError):
        return None
