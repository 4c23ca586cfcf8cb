"""Which images of a run to take, by an expression over its columns and its scores; and the data set of these.

    reward > 0.5 and number(price) < 9 and not contains(prompt, "ring") and near_duplicate_of is None

The expression is parsed into a tree of which a few node types are known; nothing of it is executed by Python.
Columns are read without the images first, so that memory holds the images of a few rows only.
"""

from __future__ import annotations

import ast
import functools
import itertools
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ttsvar_ray.dataset.card import derived_card, write_card
from ttsvar_ray.dataset.contents import opened
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.manifest import RunManifest
from ttsvar_ray.dataset.part_manifest import data_digest
from ttsvar_ray.dataset.rows import PICTURE
from ttsvar_ray.errors import ConfigurationError, OutputError, nearest
from ttsvar_ray.evaluate.score_table import KEYS, read_scores, tables
from ttsvar_ray.storage.location import locate

_ROWS_AT_A_TIME = 32

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[[Any, str], Any]] = {
    "contains": pc.match_substring,
    "starts_with": pc.starts_with,
    "ends_with": pc.ends_with,
    "matches": pc.match_substring_regex,
}


_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def parse_filter(text: str, columns: Sequence[str]) -> pc.Expression:
    """Return a filter of pyarrow.

    Args:
        text: comparisons of columns with numbers, texts and each other, joined by `and`, `or`, `not`;
            `in [...]`, `is None`, `is not None`; contains, starts_with, ends_with, matches of a text;
            text of any column, and number, which is None where it is none.
        columns: that there are.

    Raises:
        ConfigurationError: anything else, or a column that is not there.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigurationError(
            f"--where: expected an expression such as 'reward > 0.5 and contains(prompt, \"red\")', got "
            f"{text!r} ({str(error).splitlines()[0]})"
        ) from None
    try:
        return _Parser(columns).condition(tree.body)
    except RecursionError:
        raise ConfigurationError("--where: the expression is nested too deeply") from None
    except (pa.ArrowException, TypeError, OverflowError) as error:  # several kinds, or too large
        raise _unanswerable(error) from None


def _unanswerable(error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"--where: cannot be asked of these columns ({str(error).splitlines()[0]}); number(COLUMN) reads a "
        "column, such as those of a CSV file, as numbers, and text(COLUMN), such as dates, as texts"
    )


def _check_column(option: str, name: str, columns: Sequence[str]) -> None:
    if name not in columns:
        told = f"got {name!r}{nearest(name, list(columns))}"
        raise ConfigurationError(f"{option}: expected one of the columns {', '.join(columns)}, {told}")


class _Parser:
    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns

    def condition(self, node: ast.expr) -> Any:
        """Return what is true or false of a row."""
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                return functools.reduce(operator.and_, map(self.condition, values))
            case ast.BoolOp(op=ast.Or(), values=values):
                return functools.reduce(operator.or_, map(self.condition, values))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.condition(operand)
            case ast.Compare(left=left, ops=ops, comparators=others):
                sides = [left, *others]
                pairs = zip(sides, ops, others, strict=False)
                return functools.reduce(operator.and_, itertools.starmap(self._comparison, pairs))
            case ast.Call(func=ast.Name(id=name), args=[column, ast.Constant(value=str(part))], keywords=[]):
                if name not in _FUNCTIONS:
                    raise ConfigurationError(
                        f"--where: expected one of {', '.join(_FUNCTIONS)}, got {name!r}"
                        f"{nearest(name, list(_FUNCTIONS))}"
                    )
                return _FUNCTIONS[name](self._value(column), part)
            case ast.Name():
                return self._value(node)
        raise self._refused(node)

    def _comparison(self, left: ast.expr, how: ast.cmpop, right: ast.expr) -> Any:
        if isinstance(how, (ast.Is, ast.IsNot)):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._refused(right)
            missing = self._value(left).is_null()
            return missing if isinstance(how, ast.Is) else ~missing
        if isinstance(how, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
                raise self._refused(right)
            among = self._value(left).isin([self._constant(one) for one in right.elts])
            return among if isinstance(how, ast.In) else ~among
        return _COMPARISONS[type(how)](self._value(left), self._value(right))

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Name(id=name):
                _check_column("--where", name, self._columns)
                return pc.field(name)
            case ast.Call(func=ast.Name(id="number" | "text" as kind), args=[ast.Name() as one], keywords=[]):
                text = pc.utf8_trim_whitespace(self._value(one).cast(pa.string()))
                if kind == "text":
                    return text
                is_one = pc.match_substring_regex(text, _NUMBER)
                return pc.if_else(is_one, text, pa.scalar(None, pa.string())).cast(pa.float64())
        return pc.scalar(self._constant(node))

    def _constant(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
        raise self._refused(node)

    def _refused(self, node: ast.AST) -> ConfigurationError:
        return ConfigurationError(
            "--where: expected columns, numbers and texts, comparisons, and, or, not, in [...], is None, "
            f"number, text, {', '.join(_FUNCTIONS)}; got {ast.unparse(node)!r}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which images to take.

    Attributes:
        where: an expression; "" takes all.
        best_per_prompt: whether only one image of each prompt is taken, of those that the expression takes.
        by: the column whose highest value is the best; a tie goes to the lower rank.
    """

    where: str = ""
    best_per_prompt: bool = False
    by: str = "reward"


def select(
    layout: OutputLayout, manifest: RunManifest, selection: Selection, folder: Path
) -> tuple[int, int, int]:
    """Write the chosen images, with their scores, as a data set; the same call goes on after a stop.

    Returns:
        Images taken, prompts they are of, and images there were.

    Raises:
        ConfigurationError: an expression that cannot be used, or takes no image; nothing is written.
        OutputError: damaged parts, or a folder with something else in it.
    """
    parts = layout.data_parts()
    if not parts:
        raise OutputError(f"{layout.root}: expected images to select from, found no part in data/")
    first = _light(layout, min(parts))
    schema = first.schema
    _check_column("--by", selection.by, schema.names)
    kind = schema.field(selection.by).type
    if selection.best_per_prompt and not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ConfigurationError(f"--by: expected a column of numbers, got {selection.by!r} of {kind}")
    condition = parse_filter(selection.where, schema.names) if selection.where else None
    _taken(first.slice(0, 0), condition, selection)
    taken: dict[int, np.ndarray] = {}
    prompts = total = 0
    for chunk in parts:
        light = _light(layout, chunk)
        total += len(light)
        taken[chunk] = np.array(_taken(light, condition, selection), dtype=np.int64)
        prompts += len(pc.unique(light["row"].take(pa.array(taken[chunk]))))
    if not prompts:
        raise ConfigurationError(
            f"--where: expected some of the {total} images of {layout.root}, {selection.where!r} takes none; "
            "nothing is written"
        )
    _claim(folder, layout, manifest, selection)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for chunk, part in parts.items():
        file = folder / "data" / part.name
        if not file.is_file():
            _write(layout, chunk, taken[chunk], file)
    images = sum(map(len, taken.values()))
    content = json.loads((folder / "selection.json").read_text())
    counts = {"images": images, "prompts": prompts, "of_images": total}
    locate(folder / "selection.json").write_text(json.dumps({**content, **counts}, indent=2) + "\n")
    return images, prompts, total


def _light(layout: OutputLayout, chunk: int) -> pa.Table:
    """Return a part's columns without pictures, and its scores."""
    part = layout.data_part(chunk)
    with opened(part) as parquet:
        table = parquet.read(columns=[name for name in parquet.schema_arrow.names if name not in PICTURE])
    for name in tables(layout):
        scores = read_scores(layout, name, chunk)
        if any(not scores[key].equals(table[key]) for key in KEYS):
            raise OutputError(
                f"{layout.root}: the scores {name} of part {chunk} are of other images; run `ttsvar-ray "
                "score` again"
            )
        for column in scores.column_names:
            if column not in KEYS and column not in table.column_names:
                table = table.append_column(scores.schema.field(column), scores[column])
    return table


def _taken(light: pa.Table, condition: Any, selection: Selection) -> list[int]:
    """Return the places of the chosen rows of a part, ascending."""
    places = pa.array(np.arange(len(light)))
    table = light.append_column("_place", places)
    if condition is not None:
        try:
            table = table.filter(condition)
        except (pa.ArrowException, TypeError) as error:
            raise _unanswerable(error) from None
    if not selection.best_per_prompt:
        return [int(place) for place in table["_place"].to_pylist()]
    best: dict[int, tuple[float, int]] = {}
    for row, value, place in zip(
        table["row"].to_pylist(), table[selection.by].to_pylist(), table["_place"].to_pylist(), strict=True
    ):
        worth = -math.inf if value is None or math.isnan(value) else float(value)
        if row not in best or worth > best[row][0]:
            best[row] = (worth, place)
    return sorted(place for _, place in best.values())


def _write(layout: OutputLayout, chunk: int, wanted: np.ndarray, file: Path) -> None:
    light, start = _light(layout, chunk), 0
    with layout.data_part(chunk).open_arrow() as stream:
        schema = pq.read_schema(stream)
    scores = [light.schema.field(name) for name in light.column_names if name not in schema.names]
    for score in scores:
        schema = schema.append(score)
    with (
        opened(layout.data_part(chunk)) as parquet,
        locate(file).replacing() as staged,
        pq.ParquetWriter(staged, schema) as writer,
    ):
        for batch in parquet.iter_batches(_ROWS_AT_A_TIME):
            own = wanted[(wanted >= start) & (wanted < start + len(batch))]
            if len(own):
                rows = pa.Table.from_batches([batch]).take(pa.array(own - start))
                for score in scores:
                    rows = rows.append_column(score, light[score.name].take(pa.array(own)))
                writer.write_table(rows.cast(schema))
            start += len(batch)


def _claim(folder: Path, layout: OutputLayout, manifest: RunManifest, selection: Selection) -> None:
    """Note in a folder what is selected into it, so that only the same goes on there."""
    told: Mapping[str, Any] = {
        "run": manifest.config_digest,
        "images_digest": data_digest(layout),
        "where": selection.where,
        "best_per_prompt": selection.best_per_prompt,
        "by": selection.by,
        "scores": tables(layout),
    }
    file = folder / "selection.json"
    if file.is_file():
        before = json.loads(file.read_text())
        if any(before.get(name) != value for name, value in told.items()):
            raise OutputError(
                f"{folder}: holds another selection, or one of the run before it had more images; choose "
                "another --to folder"
            )
    elif any(not name.startswith(".") for name in locate(folder).names()):
        raise OutputError(f"{folder}: expected an empty folder, found something in it; choose another --to")
    else:  # First of all files: without it the same command would not know the folder again.
        locate(file).write_text(json.dumps(told, indent=2) + "\n")
    head = {"configs": [{"config_name": "default", "data_files": "data/*.parquet"}]}
    asked = f"`{selection.where}`" if selection.where else "all images"
    best = f", of each prompt the one with the highest {selection.by}" if selection.best_per_prompt else ""
    what = f"Of a run of ttsvar-ray ({manifest.config_digest[:12]}): {asked}{best}."
    write_card(locate(folder / "README.md"), derived_card(manifest, head, "# A selection", what))
