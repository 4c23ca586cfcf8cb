"""Whether an output folder is whole, from its files alone: nothing is trusted, everything is read.

For each part: its files are there and have the digests of its manifest; pages have their checksums; rows are
those of its prompts, in order, with ids and ordinals that fit; every image decodes to its size; each prompt
without images has one dead letter. For the whole set: no part is missing or too many, and each ordinal counts
the prompts before it that have the same id.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ttsvar_ray.columns import ColumnType
from ttsvar_ray.dataset.accounting import SELECTION_COLUMNS
from ttsvar_ray.dataset.dead_letters import count_lines, read_letters
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest, read_run
from ttsvar_ray.dataset.part_manifest import FileSum, read_part_manifest, sha256_of
from ttsvar_ray.dataset.rows import carried_columns, data_schema
from ttsvar_ray.dataset.trace import trace_schema
from ttsvar_ray.errors import OutputError, brief
from ttsvar_ray.prompts.identity import Ordinals, prompt_id_of
from ttsvar_ray.storage.location import Location

DECODERS = 4
_LOOKED_AT = ["row", "prompt_id", "ordinal", "prompt", "image", "image_rank", "width", "height"]
_ROWS_READ_AT_A_TIME = 16
_NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """What is wrong with a file."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass(slots=True, kw_only=True)
class CheckReport:
    """What a check found.

    Attributes:
        output: the folder, a path or a URI without credentials.
        parts, prompts, images, failed: read; prompts with images, rows, and dead letters.
        problems: in the order of the parts.
    """

    output: str
    parts: int = 0
    prompts: int = 0
    images: int = 0
    failed: int = 0
    problems: list[_Problem] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "output": self.output,
            "ok": self.is_whole,
            "parts": self.parts,
            "prompts": self.prompts,
            "images": self.images,
            "failed": self.failed,
            "problems": [{"file": each.file, "problem": each.what} for each in self.problems],
        }

    def verdict(self) -> str:
        """Return the outcome in one line."""
        found = len(self.problems)
        problems = f"{found} problem{'s' * (found != 1)}" if found else "all whole"
        return (
            f"{self.output}: {self.parts} parts, {self.prompts} prompts, {self.images} images, "
            f"{self.failed} dead letters; {problems}"
        )


def check_folder(
    layout: OutputLayout, *, on_problem: Callable[[_Problem], None] = lambda problem: None
) -> CheckReport:
    """Read a whole output folder.

    Args:
        layout: the folder; of a shard's folder the parts of that shard are expected.
        on_problem: called with each problem when it is found.

    Raises:
        OutputError: there is no run, or none that this version can read.
        StorageError: the storage fails.
    """
    return _Check(*read_run(layout), on_problem).run()


class _Check:
    def __init__(
        self, layout: OutputLayout, manifest: RunManifest, on_problem: Callable[[_Problem], None]
    ) -> None:
        self._layout = layout
        self._manifest = manifest
        self._on_problem = on_problem
        self._report = CheckReport(output=str(layout.root))
        self._columns = _columns_of(manifest)
        self._has_own_ids = _setting(manifest, "prompts", "id_column") is not None
        self._ordinals = Ordinals()
        self._given = array("Q")
        self._rows_missing = False

    def run(self) -> CheckReport:
        layout, report = self._layout, self._report
        parts = layout.data_parts()
        expected = self._expected(parts)
        if missing := [index for index in expected if index not in parts]:
            self._rows_missing = True
            names = ", ".join(layout.data_part(index).name for index in missing[:_NAMES_SHOWN])
            more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
            self._add(
                layout.data_folder,
                f"{len(missing)} of {len(expected)} parts are not there ({names}{more}); the command that "
                "began the run goes on with it",
            )
        with ThreadPoolExecutor(DECODERS, thread_name_prefix="check") as pool:
            for index in parts:
                if index in expected:
                    self._check_part(index, pool)
                report.parts += 1
        for name in layout.stray_files(expected):
            told = f"expected no such part of {self._manifest.prompt_count} prompts"
            self._add(layout.data_folder / name, f"{told}; readers of data/*.parquet take it in: remove it")
        if expected.step == 1 and not self._rows_missing:
            self._check_ordinals()
        found = count_lines(layout.bad_lines_file)
        if expected.start == 0 and found != self._manifest.bad_lines:
            self._add(layout.bad_lines_file, f"expected {self._manifest.bad_lines} bad lines, found {found}")
        return report

    def _expected(self, parts: Mapping[int, Location]) -> range:
        """Return the parts that must be there: all, or those of a shard if there are no others."""
        count = -(-self._manifest.prompt_count // self._manifest.rows_per_chunk)
        shard = str(_setting(self._manifest, "cluster", "shard") or "0/1")
        first, _, step = shard.partition("/")
        if first.isdecimal() and step.isdecimal() and int(step):
            own = range(int(first), count, int(step))
            if all(index in own for index in parts):
                return own
        return range(count)

    def _check_part(self, index: int, pool: Executor) -> None:
        layout = self._layout
        size = self._manifest.rows_per_chunk
        rows = range(index * size, min((index + 1) * size, self._manifest.prompt_count))
        data: tuple[FileSum, ...] = ()
        trace: tuple[FileSum, ...] = ()
        try:
            manifest = read_part_manifest(layout.manifest_part(index))
        except OutputError as error:
            self._add(layout.manifest_part(index), _without_place(error, layout.manifest_part(index)))
        else:
            if manifest is None:
                self._add(layout.manifest_part(index), "expected the manifest of a part, there is none")
            else:
                data = (manifest.data, *manifest.data_before)
                trace = (manifest.trace, *manifest.trace_before)
        prompts: dict[int, tuple[str, int]] = {}
        tables: list[pa.Table] = []
        file = layout.data_part(index)
        plan = self._manifest.plan
        columns = () if plan is None else plan.row_columns

        def look_at_rows(parquet: pq.ParquetFile) -> None:
            self._check_rows(file, parquet, rows, prompts, pool)
            if set(columns) <= set(parquet.schema_arrow.names):
                tables.append(parquet.read(columns=list(columns)))

        self._read(file, data, look_at_rows)
        selections = layout.trace_part(index)

        def look_at_selections(parquet: pq.ParquetFile) -> None:
            self._check_selections(selections, parquet, rows)
            if set(SELECTION_COLUMNS) <= set(parquet.schema_arrow.names):
                tables.append(parquet.read(columns=list(SELECTION_COLUMNS)))

        self._read(selections, trace, look_at_selections)
        if plan is not None and data and len(tables) == 2:
            self._check_what_ran(index, [each.ran for each in data], plan.ran(*tables))
        self._report.prompts += len(prompts)
        self._check_letters(index, rows, prompts)
        for row in rows:
            if row in prompts:
                self._ordinals.observe(prompts[row][0])
                self._given.append(prompts[row][1])
            else:
                self._rows_missing = True

    def _read(
        self, file: Location, sums: tuple[FileSum, ...], look: Callable[[pq.ParquetFile], None]
    ) -> None:
        """Compare a file with its sums, and look into it; what cannot be read becomes a problem."""
        try:
            with on_this_machine(file) as path:
                with path.open("rb") as stream:
                    digest = sha256_of(stream)
                if sums and digest not in {each.sha256 for each in sums}:
                    self._add(
                        file,
                        f"sha256 {digest[:12]}..., but its manifest says {sums[0].sha256[:12]}...: the file "
                        "is not what was written",
                    )
                with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
                    look(parquet)
        except FileNotFoundError:
            self._add(file, "there is no such file")
        except (pa.ArrowException, OSError, ValueError) as error:
            self._add(file, f"cannot be read as Parquet ({brief(error)})")

    def _check_rows(
        self,
        part: Location,
        parquet: pq.ParquetFile,
        rows: range,
        prompts: dict[int, tuple[str, int]],
        pool: Executor,
    ) -> None:
        if _words(parquet.schema_arrow) != self._columns:
            self._add(part, "its columns are not those of this run")
            return
        last, rank = -1, -1
        for batch in parquet.iter_batches(_ROWS_READ_AT_A_TIME):
            table = batch.select(_LOOKED_AT).to_pylist()  # all columns are read; of times Python lacks some
            for row, reason in zip(table, pool.map(_image_problem, table), strict=True):
                number = row["row"]
                self._report.images += 1
                if reason:
                    self._add(part, f"image {row['image_rank']} of row {number}: {reason}")
                rank = rank + 1 if number == last else 0
                if number not in rows or number < last or row["image_rank"] != rank:
                    self._add(
                        part,
                        f"expected rows of prompts {rows.start} to {rows.stop - 1} in order, images of each "
                        f"from 0 on, got image {row['image_rank']} of row {number} after row {last}",
                    )
                    return
                last = number
                name = (row["prompt_id"], row["ordinal"])
                if prompts.setdefault(number, name) != name:
                    self._add(part, f"row {number}: its images have different ids")
                if not self._has_own_ids and prompt_id_of(row["prompt"] or "") != row["prompt_id"]:
                    self._add(part, f"row {number}: its id is not that of its prompt")

    def _check_selections(self, trace: Location, parquet: pq.ParquetFile, rows: range) -> None:
        if not parquet.schema_arrow.equals(trace_schema()):
            self._add(trace, "its columns are not those of a trace of this version")
            return
        numbers = parquet.read()["row"].to_pylist()
        if numbers != sorted(numbers) or not set(numbers) <= set(rows):
            self._add(trace, f"expected selections of prompts {rows.start} to {rows.stop - 1} in order")

    def _check_what_ran(self, index: int, told: list[tuple[int, ...]], ran: tuple[int, ...]) -> None:
        """Compare what the manifest of a part says of its cost with what its rows and searches say."""
        if ran not in told:
            self._add(
                self._layout.manifest_part(index),
                f"its prompts and the trajectories of its segments are {list(told[0])}, by its rows and "
                f"searches {list(ran)}",
            )

    def _check_letters(self, index: int, rows: range, prompts: dict[int, tuple[str, int]]) -> None:
        """Compare the dead letters of a part with what it lacks, and take their prompts in."""
        file = self._layout.failed_part(index)
        try:
            letters = read_letters(file)
        except OutputError as error:
            self._add(file, _without_place(error, file))
            letters = []
        self._report.failed += len(letters)
        for letter in letters:
            row = letter["row"]
            if row in prompts or row not in rows:
                self._add(file, f"one dead letter too many for row {row}")
            else:
                prompts[row] = (str(letter.get("prompt_id")), _whole(letter.get("ordinal")))
        missing = [row for row in rows if row not in prompts]
        if missing:
            shown = ", ".join(map(str, missing[:_NAMES_SHOWN])) + ", ..." * (len(missing) > _NAMES_SHOWN)
            part = self._layout.data_part(index)
            self._add(part, f"neither images nor a dead letter for {len(missing)} rows: {shown}")

    def _check_ordinals(self) -> None:
        for row, (expected, given) in enumerate(zip(self._ordinals, self._given, strict=True)):
            if expected != given:
                part = self._layout.data_part(row // self._manifest.rows_per_chunk)
                self._add(
                    part,
                    f"row {row}: expected ordinal {expected}, for so many prompts before it have its id, "
                    f"got {given}",
                )
                return

    def _add(self, file: Location, what: str) -> None:
        problem = _Problem(file=str(file), what=what)
        self._report.problems.append(problem)
        self._on_problem(problem)


def _image_problem(row: Mapping[str, Any]) -> str:
    """Return what is wrong with the image of a row; nothing if it decodes to its size."""
    try:
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            image.load()
            size = image.size
    except Exception as error:  # noqa: BLE001 - decoders raise whatever damaged bytes lead them to
        return f"does not decode ({brief(error)})"
    expected = (row["width"], row["height"])
    return "" if size == expected else f"expected {expected[0]}x{expected[1]} pixels, got {size[0]}x{size[1]}"


@contextlib.contextmanager
def on_this_machine(file: Location) -> Iterator[Path]:
    """Yield a path to the file: its own, or one of a copy."""
    if (path := file.local_path) is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ttsvar-check-") as folder:
        copy = Path(folder) / file.name
        with file.open() as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        yield copy


def _columns_of(manifest: RunManifest) -> list[tuple[str, str]]:
    """Return name and type of each column of a run's parts, types in words as the manifest has them."""
    words, plan = manifest.column_types, manifest.plan
    carried = carried_columns(dict.fromkeys(words, ColumnType.STRING))
    own = data_schema(
        (),
        bits=bool(_setting(manifest, "output", "bits")),
        rounds=plan.is_adaptive if plan else _setting(manifest, "strategy", "name") == "adaptive",
        rewritten=_setting(manifest, "prompts", "rewrite") is not None,
    )
    json_is_text = {"json": "string"}
    return [
        *_words(own),
        *((column.name, json_is_text.get(words[column.source], words[column.source])) for column in carried),
    ]


def _words(schema: pa.Schema) -> list[tuple[str, str]]:
    # What a list holds is called "item" in memory and "element" in files; it is no difference.
    return [(field.name, str(ColumnType(field.type)).replace("<element: ", "<item: ")) for field in schema]


def _setting(manifest: RunManifest, section: str, key: str) -> Any:
    values = manifest.config.get(section)
    return values.get(key) if isinstance(values, Mapping) else None


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32 else 0


def _without_place(error: OutputError, file: Location) -> str:
    return str(error).removeprefix(f"{file}: ")
