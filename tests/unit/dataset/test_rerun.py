"""Prompts that were given up run again: the result is what it would be had they not failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from outcome_samples import failure, result

from ttsvar_ray.columns import ColumnType
from ttsvar_ray.dataset import writer
from ttsvar_ray.dataset.contents import failed_rows, summarise_output
from ttsvar_ray.dataset.layout import OutputLayout
from ttsvar_ray.dataset.rows import RowContext, carried_columns
from ttsvar_ray.dataset.writer import write_chunk
from ttsvar_ray.errors import LostRowsError, OutputError

ROWS = range(4, 10)
AGAIN = (5, 6, 9)
CONTEXT = RowContext(
    model="shapes",
    strategy="tts-var",
    seed=7,
    reward_name="shapes",
    carried=carried_columns({"tag": ColumnType.JSON, "weight": ColumnType.FLOAT64, "raw": ColumnType.BINARY}),
    bits=True,
)


def columns(row: int) -> dict[str, Any]:
    return {"tag": {"row": row}, "weight": row / 3, "raw": bytes([row])} if row % 2 else {}


def done(row: int) -> Any:
    return result(row, images=2, **columns(row))


def lost(row: int) -> Any:
    return failure(row, **columns(row))


@pytest.fixture(params=["local", "s3"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], OutputLayout]:
    if request.param == "local":
        return lambda name: OutputLayout(tmp_path / name)
    bucket = request.getfixturevalue("s3").new_bucket()
    return lambda name: OutputLayout(f"s3://{bucket}/{name}")


def write_with_failures(layout: OutputLayout) -> None:
    finished = [done(row) for row in ROWS if row not in AGAIN]
    failed = [lost(row) for row in AGAIN]
    write_chunk(layout, 1, rows=ROWS, finished=finished, failed=failed, context=CONTEXT)


def files(layout: OutputLayout) -> dict[str, bytes]:
    folders = {"data": layout.data_folder, "trace": layout.trace_folder, "failed": layout.failed_folder}
    return {
        f"{name}/{file}": (folder / file).read_bytes()
        for name, folder in folders.items()
        for file in folder.names()
    }


@pytest.fixture(autouse=True)
def _several_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "ROW_GROUP_ROWS", 5)
    monkeypatch.setattr(writer, "_ROWS_READ_AT_A_TIME", 3)


def test_the_part_is_what_it_would_be_without_failures(make: Callable[[str], OutputLayout]) -> None:
    plain, repaired = make("plain"), make("repaired")
    write_chunk(plain, 1, rows=ROWS, finished=[done(row) for row in ROWS], failed=[], context=CONTEXT)
    write_with_failures(repaired)
    assert failed_rows(repaired, {1}) == {1: AGAIN}
    report = write_chunk(
        repaired, 1, rows=ROWS, finished=[done(row) for row in reversed(AGAIN)], failed=[], context=CONTEXT
    )
    assert (report.prompts, report.failed, report.images) == (3, 0, 12)
    assert files(repaired) == files(plain)
    assert summarise_output(repaired) == summarise_output(plain)
    assert failed_rows(repaired, {1}) == {}


def test_in_several_retries_too_and_what_still_fails_stays_a_dead_letter(tmp_path: Path) -> None:
    plain, repaired = OutputLayout(tmp_path / "plain"), OutputLayout(tmp_path / "repaired")
    write_chunk(plain, 1, rows=ROWS, finished=[done(row) for row in ROWS], failed=[], context=CONTEXT)
    write_with_failures(repaired)
    write_chunk(repaired, 1, rows=ROWS, finished=[done(6)], failed=[lost(9), lost(5)], context=CONTEXT)
    assert failed_rows(repaired, {1}) == {1: (5, 9)}
    assert summarise_output(repaired).failed == 2
    before = files(repaired)
    write_chunk(repaired, 1, rows=ROWS, finished=[], failed=[lost(5), lost(9)], context=CONTEXT)
    assert files(repaired) == before
    write_chunk(repaired, 1, rows=ROWS, finished=[done(5), done(9)], failed=[], context=CONTEXT)
    assert files(repaired) == files(plain)


@pytest.mark.parametrize("killed_before", ["_write_rows", "replace_letters"])
def test_a_retry_that_is_killed_loses_nothing(
    make: Callable[[str], OutputLayout], monkeypatch: pytest.MonkeyPatch, killed_before: str
) -> None:
    plain, repaired = make("plain"), make("repaired")
    write_chunk(plain, 1, rows=ROWS, finished=[done(row) for row in ROWS], failed=[], context=CONTEXT)
    write_with_failures(repaired)
    before = files(repaired)

    def die(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    def retry(rows: tuple[int, ...]) -> None:
        write_chunk(repaired, 1, rows=ROWS, finished=[done(row) for row in rows], failed=[], context=CONTEXT)

    with monkeypatch.context() as patch:
        patch.setattr(writer, killed_before, die)
        with pytest.raises(KeyboardInterrupt):
            retry(AGAIN)
    kept = files(repaired)
    if killed_before == "_write_rows":
        assert kept["data/part-00001.parquet"] == before["data/part-00001.parquet"]
        assert failed_rows(repaired, {1}) == {1: AGAIN}
        retry(AGAIN)
    else:
        assert kept["data/part-00001.parquet"] == files(plain)["data/part-00001.parquet"]
        assert "failed/part-00001.jsonl" in kept
        assert failed_rows(repaired, {1}) == {}
    assert files(repaired) == files(plain)


def test_letters_that_say_so_are_left_alone(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write_with_failures(layout)
    letters = [json.loads(line) for line in layout.failed_part(1).read_text().splitlines()]
    letters[1]["retry"] = False
    layout.failed_part(1).write_text("".join(json.dumps(letter) + "\n" for letter in letters))
    assert failed_rows(layout, {1}) == {1: (5, 9)}
    write_chunk(layout, 1, rows=ROWS, finished=[done(5), done(9)], failed=[], context=CONTEXT)
    (left,) = [json.loads(line) for line in layout.failed_part(1).read_text().splitlines()]
    assert (left["row"], left["retry"]) == (6, False)
    assert failed_rows(layout, {1}) == {}


def test_blank_lines_among_letters_count_for_nothing(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write_with_failures(layout)
    file = layout.failed_part(1)
    file.write_text("\n" + file.read_text().replace("\n", "\n\n"))
    assert failed_rows(layout, {1}) == {1: AGAIN}
    assert summarise_output(layout, {1: ROWS}).failed == len(AGAIN)


@pytest.mark.parametrize("line", ['{"row": 5, "retry": False}', '{"retry": false}', "5", '{"row": [5]}'])
def test_letters_that_cannot_be_read_are_told(line: str, tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write_with_failures(layout)
    layout.failed_part(1).write_text(f'{{"row": 6}}\n{line}\n')
    with pytest.raises(OutputError, match=r"failed/part-00001.jsonl: line 2 is no dead letter"):
        failed_rows(layout, {1})


def test_a_trace_that_somebody_deleted_keeps_no_prompt_from_running_again(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write_with_failures(layout)
    layout.trace_part(1).delete()
    write_chunk(layout, 1, rows=ROWS, finished=[done(row) for row in AGAIN], failed=[], context=CONTEXT)
    assert set(pq.read_table(tmp_path / "trace/part-00001.parquet")["row"].to_pylist()) == set(AGAIN)
    assert summarise_output(layout, {1: ROWS}).failed == 0


def test_only_committed_chunks_have_rows_to_run_again(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write_with_failures(layout)
    assert failed_rows(layout, set()) == {}
    assert failed_rows(layout, {1, 2}) == {1: AGAIN}


def test_parts_that_cannot_be_merged_are_told(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write_with_failures(layout)
    part = tmp_path / "data/part-00001.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["bits"]), part)
    with pytest.raises(OutputError, match="expected the columns that this version writes"):
        write_chunk(layout, 1, rows=ROWS, finished=[done(5)], failed=[], context=CONTEXT)
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(OutputError, match="not a whole Parquet file"):
        failed_rows(layout, {1})


def test_rows_of_another_chunk_are_never_merged(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write_with_failures(layout)
    for finished in ([done(3)], [done(5), done(5)]):
        with pytest.raises(LostRowsError, match="chunk 1"):
            write_chunk(layout, 1, rows=ROWS, finished=finished, failed=[], context=CONTEXT)
