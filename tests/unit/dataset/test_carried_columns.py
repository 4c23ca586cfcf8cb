"""The caller's columns: names, types and values on their way through a part."""

from __future__ import annotations

import dataclasses
import datetime
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from outcome_samples import result
from typer.testing import CliRunner

from tests.support.manifests import manifest
from ttsvar_ray.api.saved import load
from ttsvar_ray.cli.app import app
from ttsvar_ray.columns import ColumnType
from ttsvar_ray.dataset import writer
from ttsvar_ray.dataset.export import exported_images
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.output import open_output
from ttsvar_ray.dataset.rows import CarriedColumn, RowContext, carried_columns
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.prompts import PromptSource, read_prompts, scan_prompts
from ttsvar_ray.results import PromptFailure


def test_a_carried_column_with_an_output_name_is_prefixed_until_it_is_free() -> None:
    (column,) = carried_columns({"reward": ColumnType.FLOAT64})
    assert column == CarriedColumn(source="reward", name="input_reward", type=ColumnType.FLOAT64)
    again = carried_columns({"reward": ColumnType.FLOAT64, "input_reward": ColumnType.FLOAT64})
    assert [each.name for each in again] == ["input_input_reward", "input_reward"], "a part as prompt file"


TIME = datetime.datetime(2026, 11, 26, tzinfo=datetime.timezone.utc)
ARROW_VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "raw": (pa.binary(), [b"\xff\x00", None]),
    "small": (pa.int8(), [-1, None]),
    "unsigned": (pa.uint64(), [2**64 - 1, None]),
    "half": (pa.float32(), [0.1, None]),
    "price": (pa.decimal128(10, 2), [Decimal("1.20"), None]),
    "when": (pa.timestamp("us", tz="UTC"), [TIME, None]),
    "far": (pa.timestamp("s"), [10**12, None]),
    "exact": (pa.timestamp("ns"), [1_700_000_000_123_456_789, None]),
    "day": (pa.date32(), [datetime.date(2026, 11, 26), None]),
    "took": (pa.duration("ms"), [datetime.timedelta(seconds=1), None]),
    "clock": (pa.time64("ns"), [1_000_000_001, None]),
    "tags": (pa.list_(pa.string()), [["a", None], None]),
    "times": (pa.list_(pa.timestamp("ns")), [[1, None], None]),
    "picture": (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), [{"bytes": b"\x89P"}, None]),
    "large": (pa.large_string(), ["x", None]),
}


def test_the_callers_columns_keep_their_arrow_types_and_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    columns = {name: pa.array(values, type=kind) for name, (kind, values) in ARROW_VALUES.items()}
    given = pa.table({"prompt": ["one", "two"], **columns})
    pq.write_table(given, tmp_path / "p.parquet")
    given = pq.read_table(tmp_path / "p.parquet")
    source = PromptSource(path=str(tmp_path / "p.parquet"))
    scan = scan_prompts(source)
    context = RowContext(
        model="m", strategy="raw", seed=0, reward_name="r", carried=carried_columns(scan.column_types)
    )
    layout = OutputLayout(tmp_path / "out")
    types = {name: str(kind) for name, kind in scan.column_types.items()}
    open_output(layout, manifest(prompt_count=2, rows_per_chunk=2, column_types=types))
    image = dataclasses.replace(result(0).images[0], lineage=(0,))
    first, second = (
        dataclasses.replace(result(prompt.row), prompt=prompt, images=(image,), trace=())
        for prompt in read_prompts(source, scan=scan)
    )
    lost = PromptFailure(prompt=second.prompt, attempts=1, errors=("no",))
    write_chunk(layout, 0, rows=range(2), finished=[first], failed=[lost], context=context)
    assert write_chunk(layout, 0, rows=range(2), finished=[second], failed=[], context=context).images == 2
    written = pq.read_table(str(layout.data_part(0)))
    assert written.select(list(columns)).equals(given.select(list(columns)))
    opened = load(layout.root.path)[0]
    assert str(10**12) in opened.columns["far"]
    assert opened.columns["exact"] == "2023-11-14 22:13:20.123456789", "as in an export"
    report = CliRunner().invoke(app, ["report", str(layout.root), "--pictures", "0"])
    assert report.exit_code == 0, report.output
    checked = CliRunner().invoke(app, ["check", str(layout.root)])
    assert checked.output.endswith("all whole\n"), checked.output
    monkeypatch.delitem(sys.modules, "pandas")
    rows = datasets.load_dataset(
        "parquet", data_dir=str(layout.data_folder), split="train", cache_dir=str(tmp_path / "c")
    )
    exported = list(exported_images(layout, {}, best_only=True))
    assert exported[0].metadata["exact"] == "2023-11-14 22:13:20.123456789"
    assert rows.features["when"].dtype == "timestamp[us, tz=UTC]"
    (first, _) = rows.select_columns(["picture"])
    assert first["picture"] == {"bytes": b"\x89P", "path": None}, "no picture, because nobody said so"


def test_all_empty_columns_keep_their_type(tmp_path: Path) -> None:
    carried = carried_columns({"note": ColumnType.FLOAT64})
    context = RowContext(model="m", strategy="raw", seed=0, reward_name="r", carried=carried)
    path = tmp_path / "part.parquet"
    writer.write_part(path, [result(0, note=None)], context=context)
    assert pq.read_schema(path).field("note").type == pa.float64()
