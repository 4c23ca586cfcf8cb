"""Parts open with pictures, hold every column, and appear only when whole."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from outcome_samples import CONTEXT, encoded, failure, pixels, result
from PIL import Image

from tests.support.manifests import manifest
from ttsvar_ray.columns import ColumnType
from ttsvar_ray.dataset import writer
from ttsvar_ray.dataset.contents import summarise_output
from ttsvar_ray.dataset.dead_letters import count_lines, read_letters, write_letters, write_lines
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.output import open_output
from ttsvar_ray.dataset.rows import RowContext, carried_columns, data_schema
from ttsvar_ray.dataset.trace import trace_schema
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.errors import LostRowsError
from ttsvar_ray.prompts import BadLine
from ttsvar_ray.storage.location import locate

CARRIED = carried_columns(
    {
        "tag": ColumnType.STRING,
        "include": ColumnType.JSON,
        "weight": ColumnType.FLOAT64,
        "seed": ColumnType.INT64,
        "ok": ColumnType.BOOL,
    }
)
COLUMNS: dict[str, Any] = {
    "tag": "counting",
    "include": [{"class": "dog"}],
    "weight": 2,
    "seed": 9,
    "ok": True,
}


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_two_chunks(root: Path) -> OutputLayout:
    layout = OutputLayout(root)
    context = RowContext(
        model="shapes", strategy="tts-var", seed=7, reward_name="shapes", carried=CARRIED, bits=True
    )
    write_chunk(
        layout,
        0,
        rows=range(3),
        finished=[result(2), result(0, images=2, **COLUMNS)],
        failed=[failure(1, **COLUMNS)],
        context=context,
    )
    write_chunk(layout, 1, rows=range(3, 5), finished=[result(3), result(4)], failed=[], context=context)
    return layout


def test_datasets_opens_the_parts_with_pictures(tmp_path: Path) -> None:
    layout = write_two_chunks(tmp_path / "out")
    rows = datasets.load_dataset(
        "parquet",
        data_files=str(layout.data_folder / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "c"),
    )
    assert isinstance(rows.features["image"], datasets.Image)
    assert [(row["row"], row["image_rank"]) for row in rows] == [(0, 0), (0, 1), (2, 0), (3, 0), (4, 0)]
    for row in rows:
        picture = row["image"]
        assert isinstance(picture, Image.Image)
        assert picture.size == (row["width"], row["height"])
        np.testing.assert_array_equal(np.asarray(picture), pixels(row["row"], row["image_rank"]))
    first = rows[0]
    assert first["lineage"] == [3, 1, 0]
    assert first["bits"] == [b"\x01", b"\x00\x00"]
    assert math.isnan(first["reward_history"][0])
    assert first["reward_history"][1] == 0.25
    assert first["reward_members"] == [0.25, 0.0]
    assert first["text_truncated"] is True
    assert (first["reward_texts_truncated"], first["rewards_not_finite"]) == (1, 3)
    assert json.loads(first["include"]) == COLUMNS["include"]
    assert (first["tag"], first["weight"], first["input_seed"], first["ok"]) == ("counting", 2.0, 9, True)
    assert (first["model"], first["strategy"], first["seed"], first["reward_name"]) == (
        "shapes",
        "tts-var",
        7,
        "shapes",
    )
    assert rows[2]["tag"] is None


def test_the_whole_folder_opens_through_its_card(tmp_path: Path) -> None:
    open_output(OutputLayout(tmp_path / "out"), manifest(prompt_count=5))
    layout = write_two_chunks(tmp_path / "out")
    rows = datasets.load_dataset(str(layout.root), split="train", cache_dir=str(tmp_path / "c"))
    assert [row["row"] for row in rows] == [0, 0, 2, 3, 4]
    assert isinstance(rows[0]["image"], Image.Image)


def test_a_chunk_without_images_is_a_part_that_opens_beside_the_others(tmp_path: Path) -> None:
    layout = write_two_chunks(tmp_path / "out")
    context = RowContext(
        model="shapes", strategy="tts-var", seed=7, reward_name="shapes", carried=CARRIED, bits=True
    )
    write_chunk(layout, 2, rows=range(5, 6), finished=[], failed=[failure(5)], context=context)
    assert pq.read_metadata(str(layout.data_part(2))).num_rows == 0
    rows = datasets.load_dataset(
        "parquet", data_dir=str(layout.data_folder), split="train", cache_dir=str(tmp_path / "c")
    )
    assert len(rows) == 5


def test_the_schema_is_what_datasets_itself_would_write() -> None:
    schema = data_schema((), bits=False)
    features = datasets.Features.from_arrow_schema(schema)
    for name, feature in features.items():
        if not isinstance(feature, datasets.List):
            assert datasets.Features({name: feature}).arrow_schema.field(name).type == schema.field(name).type
    assert isinstance(features["image"], datasets.Image)


def test_the_columns_are_those_that_the_page_on_outputs_names(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "outputs.md").read_text(encoding="utf-8")
    body = page.partition("| column | type | what it is |\n| --- | --- | --- |\n")[2].partition("\n\n")[0]
    told = [[cell.strip() for cell in line.split("|")[1:3]] for line in body.splitlines()]
    named = {name.strip("`"): kind.strip("`") for names, kind in told for name in names.split(", ")}
    schema = data_schema((), bits=True, rounds=True, rewritten=True)
    kinds = {field.name: re.sub("(element|item): ", "", str(field.type)) for field in schema}
    kinds = {name: re.sub(r"\bfloat\b", "float32", kind) for name, kind in kinds.items()}
    assert {name: kinds[name] for name in sorted(kinds)} == {name: named[name] for name in sorted(named)}
    context = dataclasses.replace(CONTEXT, bits=True, rounds=True, rewritten=True)
    part = tmp_path / "part.parquet"
    writer.write_part(part, [result(0, images=2), result(1)], context=context)
    table = pq.read_table(part)
    assert {name for name in table.column_names if table[name].null_count} == {"cost_images"}


def test_parts_do_not_depend_on_the_order_of_outcomes(tmp_path: Path) -> None:
    parts = []
    for name, order in (("a", [0, 1, 2]), ("b", [2, 0, 1])):
        layout = OutputLayout(tmp_path / name)
        done = [result(row, images=2) for row in order]
        write_chunk(layout, 0, rows=range(3), finished=done, failed=[], context=CONTEXT)
        parts.append(layout.data_part(0).read_bytes())
    assert parts[0] == parts[1]


def test_a_chunk_that_lost_or_doubled_a_prompt_is_never_written(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    for finished, failed in (
        ([result(0)], []),
        ([result(0), result(1), result(1)], []),
        ([result(0), result(1)], [failure(1)]),
    ):
        with pytest.raises(LostRowsError, match=r"expected each row of range\(0, 2\) once"):
            write_chunk(layout, 0, rows=range(2), finished=finished, failed=failed, context=CONTEXT)
    assert layout.data_parts() == {}


def test_a_crash_while_writing_leaves_no_part(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)

    def resolve(payload: Any) -> bytes:
        raise OSError("object lost")

    with pytest.raises(OSError, match="object lost"):
        write_chunk(
            layout, 0, rows=range(1), finished=[result(0)], failed=[], context=CONTEXT, resolve=resolve
        )
    assert layout.data_folder.names() == []


def test_dead_letters_tell_prompt_attempts_and_errors(tmp_path: Path) -> None:
    layout = write_two_chunks(tmp_path)
    (letter,) = [json.loads(line) for line in layout.failed_part(0).read_text().splitlines()]
    assert letter == {
        "row": 1,
        "prompt_id": "id1",
        "ordinal": 0,
        "prompt": "prompt number 1",
        "attempts": 3,
        "errors": ["reward: NaN"],
        "columns": COLUMNS,
    }
    assert not layout.failed_part(1).is_file()


def test_dead_letters_with_any_character_are_read_again(tmp_path: Path) -> None:
    file = locate(tmp_path / "letters.jsonl")
    letters = [{"row": 1, "prompt": "one\u2028two\x85three\x0bfour"}, {"row": 2}]
    write_letters(file, letters)
    assert read_letters(file) == letters
    assert count_lines(file) == 2


def test_a_repeated_chunk_replaces_its_dead_letters(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write_chunk(layout, 0, rows=range(1), finished=[], failed=[failure(0)], context=CONTEXT)
    write_chunk(layout, 0, rows=range(1), finished=[result(0)], failed=[], context=CONTEXT)
    assert not layout.failed_part(0).is_file()
    assert summarise_output(layout).failed == 0


def test_the_trace_has_a_row_per_selection(tmp_path: Path) -> None:
    layout = write_two_chunks(tmp_path)
    table = pq.read_table(str(layout.trace_part(0)))
    assert table.schema.equals(trace_schema())
    first = table.to_pylist()[0]
    assert (first["row"], first["scale_index"], first["kind"], first["ess"]) == (0, 6, "resample", 1.5)
    assert first["ancestor_index"] == [0, 0]
    assert first["rewards"] == [1.0, 2.0]
    assert (first["log_weights"], first["labels"]) == ([-0.5, -1.5], [])
    assert first["numbers"] == [{"name": "novelty", "values": [0.25, 0.75]}]
    assert first["placement"] == ["w0", "w1"]


def test_numbers_of_an_own_operator_keep_their_values_whatever_they_are_called(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    finished = result(0)
    numbers = {"ess": (1.5, 2.5), "labels": (0.5, 3e10), "log_weights": (1.0,)}
    record = dataclasses.replace(finished.trace[0], kind="mine", numbers=numbers)
    finished = dataclasses.replace(finished, trace=(record,))
    write_chunk(layout, 0, rows=range(1), finished=[finished], failed=[], context=CONTEXT)
    (row,) = pq.read_table(str(layout.trace_part(0))).to_pylist()
    assert {entry["name"]: tuple(entry["values"]) for entry in row["numbers"]} == numbers
    assert (row["labels"], row["log_weights"]) == ([], [])


def test_the_summary_counts_files_of_all_sessions(tmp_path: Path) -> None:
    layout = write_two_chunks(tmp_path)
    write_lines(layout.bad_lines_file, [BadLine(line=4, reason="blank", excerpt="").to_json()])
    summary = summarise_output(layout)
    assert (summary.chunks, summary.prompts, summary.images, summary.failed, summary.bad_lines) == (
        2,
        4,
        5,
        1,
        1,
    )
    assert summary.mean_reward == pytest.approx((0 + 2 + 3 + 4) / 4)


def test_a_summary_names_rows_that_are_in_neither_place_or_in_both(tmp_path: Path) -> None:
    layout = write_two_chunks(tmp_path)
    chunks = {0: range(3), 1: range(3, 5)}
    assert summarise_output(layout, chunks) == summarise_output(layout)
    with pytest.raises(LostRowsError, match=r"part-00002\.parquet: neither .* for rows 5, 6\nDelete these"):
        summarise_output(layout, {**chunks, 2: range(5, 7)})
    letter = layout.failed_part(0).read_text()
    layout.failed_part(0).write_text(letter + letter.replace('"row": 1', '"row": 2'))
    with pytest.raises(LostRowsError) as doubled:
        summarise_output(layout, chunks)
    assert f"{layout.failed_part(0)}: one dead letter too many for row 2" in str(doubled.value)
    layout.failed_part(0).delete()
    layout.data_part(1).delete()
    with pytest.raises(LostRowsError, match="rows are lost or doubled in 2 parts") as lost:
        summarise_output(layout, chunks)
    assert f"{layout.data_part(0)}: neither images nor a dead letter for row 1\n" in str(lost.value)
    assert f"{layout.data_part(1)}: neither images nor a dead letter for rows 3, 4\n" in str(lost.value)


def test_a_part_that_was_rewritten_elsewhere_is_counted_all_the_same(tmp_path: Path) -> None:
    layout = write_two_chunks(tmp_path)
    before = summarise_output(layout)
    part = tmp_path / "data/part-00000.parquet"
    pq.write_table(pq.ParquetFile(part).read().replace_schema_metadata(None), part)
    assert summarise_output(layout) == before


def test_row_groups_stay_below_their_limit_and_images_are_stored_raw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = len(encoded(0).payload)
    monkeypatch.setattr(writer, "ROW_GROUP_BYTES", 2 * one + one // 2)
    path = tmp_path / "part.parquet"
    assert writer.write_part(path, [result(row) for row in range(5)], context=CONTEXT) == 5
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [2, 2, 1]
    columns = {
        metadata.row_group(0).column(index).path_in_schema: metadata.row_group(0).column(index)
        for index in range(metadata.num_columns)
    }
    assert columns["image.bytes"].compression == "UNCOMPRESSED"
    assert not columns["image.bytes"].has_dictionary_page
    assert columns["prompt"].has_offset_index
    assert columns["prompt"].has_column_index
    assert columns["image.bytes"].has_offset_index
    assert encoded(0).payload in path.read_bytes()


def test_payloads_are_resolved_one_at_a_time(tmp_path: Path) -> None:
    store = {f"ref-{row}": encoded(row).payload for row in range(3)}
    done = []
    for row in range(3):
        outcome = result(row)
        image = dataclasses.replace(outcome.images[0].image, payload=f"ref-{row}")
        kept = outcome.images[0]
        kept = type(kept)(rank=0, image=image, reward=1.0, reward_history=(), lineage=(), bits=())
        done.append(type(outcome)(prompt=outcome.prompt, images=(kept,), trace=(), attempts=1, seconds=0.0))
    path = tmp_path / "part.parquet"
    writer.write_part(path, done, context=CONTEXT, resolve=store.__getitem__)
    pictures = [Image.open(io.BytesIO(item["bytes"])) for item in pq.read_table(path)["image"].to_pylist()]
    assert len(pictures) == 3


def test_a_table_without_rows_has_no_row_group(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    finished = dataclasses.replace(result(0), trace=())
    write_chunk(layout, 0, rows=range(1), finished=[finished], failed=[], context=CONTEXT)
    assert pq.read_metadata(str(layout.trace_part(0))).num_row_groups == 0
    assert pq.read_table(str(layout.trace_part(0))).schema.equals(trace_schema())
